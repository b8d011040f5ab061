"""llama.cpp behind a small protocol; the only room with ctypes. Importing this package needs no native library."""
