// Saved states: the layout is that of rwkvflow/engine/states.py, which reads and writes the same files.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct rwkv_context;

struct SavedState {
    float *state, *logits;  // rwkv_get_state_len and rwkv_get_logits_len of them
    uint64_t tokens;        // read so far
};

// Writes beside and renames. False with a message on stderr.
bool write_state(const char *path, rwkv_context *ctx, const char *model, const SavedState &saved);

// Fills what saved points to. False, with a message on stderr, for another model's state or a damaged file.
bool read_state(const char *path, rwkv_context *ctx, const char *model, SavedState *saved);
