// Small files read and written as a whole.
#pragma once

#include "base/error.h"

namespace rwkvflow {

// The bytes of a file, and no more of them than limit + 1: free(*data). Not a map: what others do to the file later
// changes nothing. False with FILE | FILE_OPEN, FILE_READ or ALLOC.
bool read_file(const char *path, uint64_t limit, uint8_t **data, uint64_t *bytes, Error *error);

// Written beside (as PATH.part) and renamed: whole or absent. False with FILE | FILE_OPEN, FILE_WRITE or ALLOC.
bool write_file(const char *path, const void *data, uint64_t bytes, Error *error);

}  // namespace rwkvflow
