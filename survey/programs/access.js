// Node, as a program uses files that knows nothing of barfs: access.js HOW, in the device's directory.
const fs = require("fs");

const ways = {
  readSync() {
    fs.readSync(fs.openSync("bar0", "r"), Buffer.alloc(4), 0, 4, 8);
  },
  readFile() {
    fs.readFileSync("bar0");
  },
  stream() {
    fs.createReadStream("bar0", { start: 8, end: 11 }).resume();
  },
  writeSync() {
    fs.writeSync(fs.openSync("bar0", "r+"), Buffer.from([0x55]), 0, 1, 9);
  },
  writeFile() {
    fs.writeFileSync("bar0", fs.readFileSync(`${process.env.W}/changed`));
  },
};

ways[process.argv[2]]();
