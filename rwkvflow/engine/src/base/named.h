// Files by their names, which are UTF-8 on every system: Windows' own functions take names in the machine's code page.
#pragma once

#include <stdio.h>

namespace rwkvflow {

// As fopen, remove and rename of the standard library; errno says why not. Renaming replaces what has the name already.
FILE *open_named(const char *path, const char *mode);
void remove_named(const char *path);
bool rename_named(const char *from, const char *to);

}  // namespace rwkvflow
