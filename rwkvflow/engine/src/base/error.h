// Errors as rwkv.h wants them: flags that are read once, a message, printing where it is wanted. No allocation.
#pragma once

#include "rwkv.h"

namespace rwkvflow {

// The last error of a context, or of this thread's calls that had no context.
struct Error {
    uint32_t flags = 0;
    bool print = true;
    char message[256] = "";
};

// Records (and prints, where wanted) an error; returns false so that callers can return it.
[[gnu::format(printf, 3, 4)]] bool fail(Error *error, uint32_t flags, const char *format, ...);

// Where calls without a context put their errors: one a thread; whether to print is common to all threads.
Error *global_error();
void set_global_print(bool print);
bool global_print();

}  // namespace rwkvflow
