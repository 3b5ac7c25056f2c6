// A whole file, mapped read-only.
#pragma once

#include "base/error.h"

namespace rwkvflow {

struct Mapping {
    const uint8_t *data = nullptr;
    uint64_t bytes = 0;
};

// False with flags FILE | FILE_OPEN, FILE_STAT or FILE_READ. An empty file gives data null and bytes 0. The file must
// not be shortened while it is mapped.
bool map_file(const char *path, Mapping *out, Error *error);
void unmap_file(Mapping *mapping);

}  // namespace rwkvflow
