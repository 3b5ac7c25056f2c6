#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

namespace rwkvflow {

namespace {
bool print_globally = true;
thread_local Error of_thread;
}  // namespace

bool fail(Error *error, uint32_t flags, const char *format, ...) {
    error->flags |= flags;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    if (error->print) fprintf(stderr, "rwkv: %s\n", error->message);
    return false;
}

Error *global_error() {
    of_thread.print = global_print();
    return &of_thread;
}

void set_global_print(bool print) { __atomic_store_n(&print_globally, print, __ATOMIC_RELAXED); }
bool global_print() { return __atomic_load_n(&print_globally, __ATOMIC_RELAXED); }

}  // namespace rwkvflow
