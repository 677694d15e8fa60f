// Go, as a program uses files that knows nothing of barfs: access HOW, in the device's directory.
package main

import (
	"bufio"
	"io"
	"os"
)

func check(err error) {
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}

func main() {
	bytes := make([]byte, 4)
	if os.Args[1] == "readfile" {
		_, err := os.ReadFile("bar0")
		check(err)
		return
	}
	if os.Args[1] == "writefile" {
		all, err := os.ReadFile(os.Getenv("W") + "/changed")
		check(err)
		check(os.WriteFile("bar0", all, 0600))
		return
	}
	file, err := os.OpenFile("bar0", os.O_RDWR, 0)
	check(err)
	switch os.Args[1] {
	case "readat":
		_, err = file.ReadAt(bytes, 8)
	case "bufio":
		_, err = file.Seek(8, io.SeekStart)
		check(err)
		_, err = io.ReadFull(bufio.NewReader(file), bytes)
	case "writeat":
		_, err = file.WriteAt([]byte{0x55}, 9)
	}
	check(err)
	check(file.Close())
}
