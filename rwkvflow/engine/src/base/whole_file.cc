#include "base/whole_file.h"

#include <errno.h>
#include <stdio.h>

#include "base/memory.h"
#include "base/named.h"

namespace rwkvflow {

bool read_file(const char *path, uint64_t limit, uint8_t **data, uint64_t *bytes, Error *error) {
    FILE *file = open_named(path, "rb");
    if (file == nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "cannot open %s: %s", path, strerror(errno));
    uint8_t *all = nullptr;
    uint64_t size = 0, room = 0;
    bool fine = true;
    for (;;) {
        if (size == room) {
            const uint64_t wanted = room == 0 ? 1u << 16 : mul_sat(room, 2);
            room = wanted < limit + 1 ? wanted : limit + 1;
            uint8_t *wider =
                room > SIZE_MAX / 2 ? nullptr : static_cast<uint8_t *>(realloc(all, static_cast<size_t>(room)));
            if (wider == nullptr) {
                fine = fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %s", path);
                break;
            }
            all = wider;
        }
        const size_t got = fread(all + size, 1, static_cast<size_t>(room - size), file);
        size += got;
        if (size > limit) break;
        if (got == 0) {
            if (ferror(file) != 0)
                fine = fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_READ, "cannot read %s: %s", path, strerror(errno));
            break;
        }
    }
    fclose(file);
    if (!fine) {
        free(all);
        return false;
    }
    *data = all;
    *bytes = size;
    return true;
}

bool write_file(const char *path, const void *data, uint64_t bytes, Error *error) {
    const size_t length = strlen(path);
    char *part = static_cast<char *>(malloc(length + 6));
    if (part == nullptr) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for a path");
    memcpy(part, path, length);
    memcpy(part + length, ".part", 6);
    FILE *file = open_named(part, "wb");
    bool fine = file != nullptr;
    if (!fine) {
        fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_OPEN, "%s cannot be written: %s", path, strerror(errno));
    } else {
        fine = fwrite(data, 1, static_cast<size_t>(bytes), file) == bytes;
        fine = fclose(file) == 0 && fine;
        fine = fine && rename_named(part, path);
        if (!fine) {
            fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_WRITE, "%s cannot be written: %s", path, strerror(errno));
            remove_named(part);
        }
    }
    free(part);
    return fine;
}

}  // namespace rwkvflow
