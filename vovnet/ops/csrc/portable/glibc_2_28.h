// Included before each source of a library for other machines: binds functions to the versions that glibc 2.28 has.
#pragma once

// glibc 2.34 moved dlsym from libdl into libc. The old version is found in either.
__asm__(".symver dlsym, dlsym@GLIBC_2.2.5");
