#include "start.h"

#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <fcntl.h>
#include <io.h>
#include <windows.h>

namespace {

// In UTF-8; half a pair of surrogates becomes U+FFFD. Null without memory.
char *narrow(const wchar_t *text) {
    const int size = WideCharToMultiByte(CP_UTF8, 0, text, -1, nullptr, 0, nullptr, nullptr);
    char *out = size <= 0 ? nullptr : static_cast<char *>(malloc(static_cast<size_t>(size)));
    if (out != nullptr) WideCharToMultiByte(CP_UTF8, 0, text, -1, out, size, nullptr, nullptr);
    return out;
}

}  // namespace

extern "C" int wmain(int argc, wchar_t **wide) {
    _setmode(_fileno(stdin), _O_BINARY);  // else \r\n becomes \n, and 0x1a ends a pipe
    _setmode(_fileno(stdout), _O_BINARY);
    SetConsoleCP(CP_UTF8);
    SetConsoleOutputCP(CP_UTF8);
    char **argv = static_cast<char **>(calloc(static_cast<size_t>(argc) + 1, sizeof(char *)));
    bool fine = argv != nullptr;
    for (int i = 0; fine && i < argc; ++i) fine = (argv[i] = narrow(wide[i])) != nullptr;
    if (!fine) fputs("rwkv: no memory\n", stderr);
    const int code = fine ? run(argc, argv) : 1;
    for (int i = 0; argv != nullptr && i < argc; ++i) free(argv[i]);
    free(argv);
    return code;
}

const char *variable(const char *name) {
    wchar_t wide[64];
    if (MultiByteToWideChar(CP_UTF8, 0, name, -1, wide, 64) == 0) return nullptr;
    const wchar_t *found = _wgetenv(wide);
    return found == nullptr ? nullptr : narrow(found);
}

#else

int main(int argc, char **argv) { return run(argc, argv); }

const char *variable(const char *name) { return getenv(name); }

#endif
