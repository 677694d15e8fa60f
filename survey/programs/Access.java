// Java, as a program uses files that knows nothing of barfs: HOW, in the device's directory.

import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;

class Access {
    public static void main(String[] arguments) throws Exception {
        String how = arguments[0];
        try (RandomAccessFile file = new RandomAccessFile("bar0", how.equals("write") ? "rw" : "r")) {
            switch (how) {
                case "readInt" -> {
                    file.seek(8);
                    file.readInt();
                }
                case "read" -> {
                    file.seek(8);
                    file.read(new byte[4]);
                }
                case "channel" -> file.getChannel().read(ByteBuffer.allocate(4), 8);
                case "map" ->
                    file.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, 4096).getInt(8);
                case "write" -> {
                    file.seek(9);
                    file.write(0x55);
                }
                default -> throw new IllegalArgumentException(how);
            }
        }
    }
}
