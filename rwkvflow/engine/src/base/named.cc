#include "base/named.h"

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <errno.h>
#include <windows.h>
#endif

namespace rwkvflow {

#if defined(_WIN32)

namespace {

constexpr int kLongest = 4096;

// False with errno for what is no UTF-8, or too long.
bool widen(const char *text, wchar_t *out, int room) {
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, out, room) != 0) return true;
    errno = ENOENT;
    return false;
}

}  // namespace

FILE *open_named(const char *path, const char *mode) {
    wchar_t wide[kLongest], how[8];
    return widen(path, wide, kLongest) && widen(mode, how, 8) ? _wfopen(wide, how) : nullptr;
}

void remove_named(const char *path) {
    wchar_t wide[kLongest];
    if (widen(path, wide, kLongest)) _wremove(wide);
}

bool rename_named(const char *from, const char *to) {
    wchar_t old[kLongest], wanted[kLongest];
    if (!widen(from, old, kLongest) || !widen(to, wanted, kLongest)) return false;
    if (MoveFileExW(old, wanted, MOVEFILE_REPLACE_EXISTING) != 0) return true;
    errno = EACCES;
    return false;
}

#else

FILE *open_named(const char *path, const char *mode) { return fopen(path, mode); }

void remove_named(const char *path) { remove(path); }

bool rename_named(const char *from, const char *to) { return rename(from, to) == 0; }

#endif

}  // namespace rwkvflow
