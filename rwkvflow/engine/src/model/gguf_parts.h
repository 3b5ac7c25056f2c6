// The files of a GGUF: one, or the parts that llama.cpp's gguf-split makes of it.
//
// Parts are NAME-00001-of-00003.gguf and so on. The metadata of the model stand in the first; each says split.no (from
// 0), split.count and split.tensors.count (of all of them), and has tensors and their data as a whole file does.
#pragma once

#include "base/gguf.h"
#include "model/file.h"

namespace rwkvflow {

inline constexpr uint64_t kMostParts = 512;

struct GgufPart {
    const Mapping *map;
    Gguf gguf;
    uint64_t data_at;  // where its data begin: known once its tensors have been stepped over
    char *path;        // what messages call it
};

class GgufParts {
public:
    GgufParts() = default;
    GgufParts(const GgufParts &) = delete;
    GgufParts &operator=(const GgufParts &) = delete;
    ~GgufParts();

    // Reads the metadata in file->map; where they say that it is the first of several, maps the others into file->more.
    // False with FILE and what is wrong: UNSUPPORTED for another part than the first, FILE_OPEN for a missing one, DATA
    // for parts that are not of one model.
    bool open(const char *path, File *file, Error *error);

    uint32_t count() const { return count_; }
    GgufPart *begin() { return parts_; }
    GgufPart *end() { return parts_ + count_; }
    const Gguf &first() const { return parts_->gguf; }

private:
    bool open_others(const char *path, File *file, Error *error);
    GgufPart *parts_ = nullptr;
    uint32_t count_ = 0;
};

}  // namespace rwkvflow
