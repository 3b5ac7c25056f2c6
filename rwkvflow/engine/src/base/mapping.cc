#include "base/mapping.h"

#include <errno.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace rwkvflow {

#if defined(_WIN32)

bool map_file(const char *path, Mapping *out, Error *error) {
    wchar_t wide[4096];
    if (MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096) == 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "cannot open %s: not a valid path", path);
    HANDLE file =
        CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "cannot open %s: error %lu", path, GetLastError());
    LARGE_INTEGER size;
    if (!GetFileSizeEx(file, &size)) {
        CloseHandle(file);
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_STAT, "cannot stat %s", path);
    }
    *out = {};
    if (size.QuadPart > 0) {
        HANDLE section = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
        if (section != nullptr) {
            out->data = static_cast<const uint8_t *>(MapViewOfFile(section, FILE_MAP_READ, 0, 0, 0));
            CloseHandle(section);
        }
        if (out->data == nullptr) {
            CloseHandle(file);
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_READ, "cannot map %s: error %lu", path,
                        GetLastError());
        }
        out->bytes = static_cast<uint64_t>(size.QuadPart);
    }
    CloseHandle(file);
    return true;
}

void unmap_file(Mapping *mapping) {
    if (mapping->data != nullptr) UnmapViewOfFile(mapping->data);
    *mapping = {};
}

#else

bool map_file(const char *path, Mapping *out, Error *error) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "cannot open %s: %s", path, strerror(errno));
    struct stat facts;
    if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode) || facts.st_size < 0) {
        close(file);
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_STAT, "%s is not a regular file", path);
    }
    *out = {};
    if (facts.st_size > 0) {
        void *data = mmap(nullptr, static_cast<size_t>(facts.st_size), PROT_READ, MAP_PRIVATE, file, 0);
        if (data == MAP_FAILED) {
            close(file);
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_READ, "cannot map %s: %s", path, strerror(errno));
        }
        out->data = static_cast<const uint8_t *>(data);
        out->bytes = static_cast<uint64_t>(facts.st_size);
    }
    close(file);
    return true;
}

void unmap_file(Mapping *mapping) {
    if (mapping->data != nullptr) munmap(const_cast<uint8_t *>(mapping->data), static_cast<size_t>(mapping->bytes));
    *mapping = {};
}

#endif

}  // namespace rwkvflow
