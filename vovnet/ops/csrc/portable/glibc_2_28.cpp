// What newer releases of glibc and libstdc++ have, and those of manylinux_2_28 (glibc 2.28, GLIBCXX_3.4.24) do not: linked
// into libraries for other machines, and hidden in them by exports.map.
//
// libstdc++ itself stays the one that libtorch uses, because exceptions pass from here to there: with a static copy the
// count of uncaught exceptions would be wrong in both, and with another C++ library nobody would catch them.
#include <new>
#include <sstream>

// glibc 2.32. False is always right: libstdc++ counts references with atomic instructions.
extern "C" {
char __libc_single_threaded = 0;
}

namespace std {

// GLIBCXX_3.4.29
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

// Their constructors without arguments are of GLIBCXX_3.4.26, and str() is of 3.4.29.
template class basic_stringbuf<char>;
template class basic_istringstream<char>;
template class basic_ostringstream<char>;
template class basic_stringstream<char>;

}  // namespace std
