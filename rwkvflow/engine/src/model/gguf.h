// llama.cpp's files of rwkv6 and rwkv7 as a table of tensors under the author's names, as model/file.h has it.
#pragma once

#include "model/file.h"

namespace rwkvflow {

// Fills the table from file->map, which begins with GGUF's magic. False with the flags of file_open; UNSUPPORTED for
// another architecture, one part of several, or a tensor that such a model has not.
bool read_gguf(const char *path, File *file, Error *error);

}  // namespace rwkvflow
