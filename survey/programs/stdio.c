/* C's stdio, as a program uses it that knows nothing of barfs: stdio show|change FILE */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    int change = argc == 3 && strcmp(argv[1], "change") == 0;
    FILE *file = argc == 3 ? fopen(argv[2], change ? "r+b" : "rb") : NULL;
    unsigned char bytes[4];

    if (file == NULL)
        return 1;
    if (change) {
        if (fseek(file, 9, SEEK_SET) != 0 || fputc(0x55, file) == EOF)
            return 1;
    } else if (fseek(file, 8, SEEK_SET) != 0 || fread(bytes, 1, 4, file) != 4) {
        return 1;
    }
    return fclose(file) != 0;
}
