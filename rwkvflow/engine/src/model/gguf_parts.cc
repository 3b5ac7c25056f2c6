#include "model/gguf_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace rwkvflow {

namespace {

constexpr size_t kDigits = 5;

// Where the number of a part stands in its path; null for a path that is not named as one of `count` parts.
const char *number_in(const char *path, uint64_t count) {
    char ending[32];
    const int length = snprintf(ending, sizeof ending, "-of-%05llu.gguf", static_cast<unsigned long long>(count));
    const size_t size = strlen(path), rest = kDigits + static_cast<size_t>(length);
    if (size < rest + 1) return nullptr;
    const char *at = path + size - rest;
    return at[-1] == '-' && strcmp(at + kDigits, ending) == 0 ? at : nullptr;
}

// What is behind the last slash: messages name the folder once.
const char *name_of(const char *path) {
    const char *name = path;
    for (const char *at = path; *at != 0; ++at)
        if (*at == '/' || *at == '\\') name = at + 1;
    return name;
}

}  // namespace

GgufParts::~GgufParts() {
    for (uint32_t i = 0; parts_ != nullptr && i < count_; ++i) free(parts_[i].path);
    free(parts_);
}

bool GgufParts::open(const char *path, File *file, Error *error) {
    Gguf first;
    uint64_t number, count;
    if (!first.open(path, file->map.data, file->map.bytes, error) ||
        !first.number("split.no", UINT16_MAX, 0, &number, error) ||
        !first.number("split.count", UINT16_MAX, 1, &count, error))
        return false;
    if (count == 0) count = 1;  // as gguf-split's --merge leaves it
    const unsigned long long which = number + 1, all = count;
    if (number >= count)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: it says that it is part %llu of %llu", path, which,
                    all);
    if (number > 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED,
                    "%s: part %llu of %llu; name the first, which ends in -00001-of-%05llu.gguf", path, which, all,
                    all);
    if (count > kMostParts)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED, "%s: the first of %llu parts; %llu are read", path,
                    all, static_cast<unsigned long long>(kMostParts));
    parts_ = static_cast<GgufPart *>(calloc(count, sizeof(GgufPart)));
    if (count > 1) file->more = static_cast<Mapping *>(calloc(count - 1, sizeof(Mapping)));
    if (parts_ == nullptr || (count > 1 && file->more == nullptr))
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for the parts of %s", path);
    count_ = static_cast<uint32_t>(count);
    parts_[0].map = &file->map;
    parts_[0].gguf = first;
    if (count == 1) return true;
    file->n_more = count_ - 1;
    return open_others(path, file, error);
}

bool GgufParts::open_others(const char *path, File *file, Error *error) {
    const char *digits = number_in(path, count_);
    if (digits == nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED,
                    "%s: the first of %u parts, which are found by their names: it has to end in -00001-of-%05u.gguf",
                    path, count_, count_);
    uint64_t tensors = first().tensors(), wanted;
    for (uint32_t i = 1; i < count_; ++i) {
        GgufPart *part = &parts_[i];
        const size_t room = strlen(path) + 1;
        part->path = static_cast<char *>(malloc(room));
        if (part->path == nullptr)
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for the parts of %s", path);
        memcpy(part->path, path, room);
        char text[kDigits + 1];
        snprintf(text, sizeof text, "%05u", (i + 1) % 100000u);
        memcpy(part->path + (digits - path), text, kDigits);
        Error own = {};
        own.print = false;
        if (!map_file(part->path, &file->more[i - 1], &own))
            return fail(error, own.flags, "%s: its part %u of %u, %s, is missing or cannot be read; put it beside it",
                        path, i + 1, count_, name_of(part->path));
        part->map = &file->more[i - 1];
        uint64_t number, count;
        if (part->map->bytes < 4 || memcmp(part->map->data, "GGUF", 4) != 0)
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_FILE_MAGIC, "%s is no GGUF", part->path);
        if (!part->gguf.open(part->path, part->map->data, part->map->bytes, error) ||
            !part->gguf.number("split.no", UINT16_MAX, 0, &number, error) ||
            !part->gguf.number("split.count", UINT16_MAX, 1, &count, error))
            return false;
        if (number != i || count != count_)
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: it says that it is part %llu of %llu",
                        part->path, static_cast<unsigned long long>(number + 1),
                        static_cast<unsigned long long>(count));
        tensors += part->gguf.tensors();
    }
    if (!first().number("split.tensors.count", INT32_MAX, tensors, &wanted, error)) return false;
    return wanted == tensors ||
           fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: its %u parts hold %llu tensors, and it says %llu", path,
                count_, static_cast<unsigned long long>(tensors), static_cast<unsigned long long>(wanted));
}

}  // namespace rwkvflow
