// llama.cpp's files of rwkv6 and rwkv7 as a table of tensors under the author's names, as model/file.h has it.
#pragma once

#include "model/file.h"

namespace rwkvflow {

// Fills the table from file->map, which begins with GGUF's magic, and from the other parts where that is the first of
// several (model/gguf_parts.h). False with the flags of file_open; UNSUPPORTED for another architecture, another part
// than the first, or a tensor that such a model has not.
bool read_gguf(const char *path, File *file, Error *error);

}  // namespace rwkvflow
