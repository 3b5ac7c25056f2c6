// libFuzzer over the model file reader: whatever the bytes are, opening gives a context or an error; what opens is
// evaluated, alone and as a sequence, cloned, listed and quantized. Linux only: files are memory (memfd).
//
// Blind changes hit the few bytes of headers among many of weights too rarely, so most changes here know the layout:
//   header      magic, version, n_vocab, n_embd, n_layer, type: six little-endian int32
//   a tensor    n_dims, length of the name, type: int32 each; dims, the fastest first: int32 each; name; data
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rwkvflow.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

namespace {

constexpr size_t kHeader = 24;
constexpr size_t kTensors = 256;
const char *const kQuantized = "quantized.bin";  // where the fuzzer runs

struct Tensor {
    size_t start, name, data, end;
};

struct Layout {
    Tensor tensors[kTensors];
    size_t count = 0;
};

int32_t read_int(const uint8_t *data, size_t at) {
    int32_t value;
    memcpy(&value, data + at, sizeof value);
    return value;
}

void write_int(uint8_t *data, size_t at, int32_t value) { memcpy(data + at, &value, sizeof value); }

// Bytes of 32 elements; 0 for types that no file has. Types 12 and 13 come in blocks of 256.
size_t block_bytes(int32_t type) {
    const size_t sizes[] = {128, 64, 18, 20, 0, 0, 0, 22, 24, 34, 0, 0, 18, 22};
    return type >= 0 && type < 14 ? sizes[type] : 0;
}

// The tensors that can be told apart; ends at the first that makes no sense.
void walk(const uint8_t *data, size_t size, Layout *out) {
    size_t at = kHeader;
    while (out->count < kTensors && size >= at && size - at >= 12) {
        const int32_t n_dims = read_int(data, at), length = read_int(data, at + 4), type = read_int(data, at + 8);
        if (n_dims < 1 || n_dims > 4 || length < 0 || length > 256 || block_bytes(type) == 0) return;
        Tensor tensor;
        tensor.start = at;
        tensor.name = at + 12 + 4 * static_cast<size_t>(n_dims);
        tensor.data = tensor.name + static_cast<size_t>(length);
        if (tensor.data > size) return;
        size_t elements = 1;
        for (int32_t d = 0; d < n_dims; ++d) {
            const int32_t dim = read_int(data, at + 12 + 4 * static_cast<size_t>(d));
            if (dim < 1 || static_cast<size_t>(dim) > size) return;
            elements *= static_cast<size_t>(dim);
            if (elements > size) return;
        }
        tensor.end = tensor.data + elements * block_bytes(type) / 32;
        if (tensor.end > size) return;
        out->tensors[out->count++] = tensor;
        at = tensor.end;
    }
}

struct Random {
    uint64_t state;
    uint32_t below(size_t limit) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>((state >> 33) % limit);
    }
};

int32_t likely(Random *random, int32_t old) {
    const int32_t values[] = {0,
                              1,
                              -1,
                              2,
                              3,
                              4,
                              5,
                              7,
                              8,
                              9,
                              12,
                              13,
                              16,
                              30,
                              31,
                              32,
                              33,
                              40,
                              64,
                              96,
                              100,
                              101,
                              128,
                              255,
                              256,
                              1 << 16,
                              1 << 24,
                              1 << 30,
                              2147483647,
                              2147483616,
                              -2147483647 - 1};
    switch (random->below(4)) {
        case 0: return static_cast<int32_t>(static_cast<uint32_t>(old) + random->below(65) - 32);
        case 1: return old / 2;
        case 2: return static_cast<int32_t>(static_cast<uint32_t>(old) * 2u);
        default: return values[random->below(sizeof values / sizeof values[0])];
    }
}

// Replaces [from, to) by `length` bytes (zeros, or `with`); returns the new size, or the old one where it does not fit.
size_t splice(uint8_t *data, size_t size, size_t max_size, size_t from, size_t to, const uint8_t *with, size_t length) {
    if (size - (to - from) + length > max_size) return size;
    memmove(data + from + length, data + to, size - to);
    if (with != nullptr) memcpy(data + from, with, length);
    else memset(data + from, 0, length);
    return size - (to - from) + length;
}

// One change that knows the layout.
size_t change(uint8_t *data, size_t size, size_t max_size, Random *random) {
    Layout layout;
    walk(data, size, &layout);
    if (layout.count == 0 || random->below(8) == 0) {
        if (size >= kHeader)
            write_int(data, 4 * random->below(6), likely(random, read_int(data, 4 * random->below(6))));
        return size;
    }
    const Tensor &one = layout.tensors[random->below(layout.count)];
    const Tensor &two = layout.tensors[random->below(layout.count)];
    const size_t n_ints = (one.name - one.start) / 4;
    uint8_t copy[1024];
    switch (random->below(9)) {
        case 0:
        case 1: {  // a number of the header
            const size_t at = one.start + 4 * random->below(n_ints);
            write_int(data, at, likely(random, read_int(data, at)));
            return size;
        }
        case 2: {  // a dimension, and as much data as it asks for
            const size_t at = one.start + 12 + 4 * random->below(n_ints - 3);
            const int32_t old = read_int(data, at), now = likely(random, old);
            const uint64_t want =
                (one.end - one.data) / static_cast<size_t>(old) * static_cast<uint64_t>(now < 1 ? 1 : now);
            if (now < 1 || want > max_size) return size;
            write_int(data, at, now);
            return splice(data, size, max_size, one.data, one.end, nullptr, static_cast<size_t>(want));
        }
        case 3: {  // another type, and as much data as it asks for
            const int32_t types[] = {0, 1, 2, 3, 7, 8, 9, 12, 13};
            const int32_t old = read_int(data, one.start + 8), now = types[random->below(9)];
            const size_t want = (one.end - one.data) * 32 / block_bytes(old) * block_bytes(now) / 32;
            write_int(data, one.start + 8, now);
            return splice(data, size, max_size, one.data, one.end, nullptr, want);
        }
        case 4: return splice(data, size, max_size, one.start, one.end, nullptr, 0);  // one tensor less
        case 5: {                                                                     // the name of another one
            const size_t length = two.data - two.name;
            if (length > sizeof copy) return size;
            memcpy(copy, data + two.name, length);
            write_int(data, one.start + 4, static_cast<int32_t>(length));
            return splice(data, size, max_size, one.name, one.data, copy, length);
        }
        case 6: {  // a letter of the name
            if (one.data > one.name)
                data[one.name + random->below(one.data - one.name)] = static_cast<uint8_t>(random->below(256));
            return size;
        }
        case 7: {  // weights that are no numbers, or large ones
            const uint8_t fills[] = {0x00, 0xff, 0x7f, 0x80, 0x7c, 0xfc};
            const size_t length = one.end - one.data;
            if (length == 0) return size;
            const size_t from = random->below(length), count = 1 + random->below(length - from);
            memset(data + one.data + from, fills[random->below(sizeof fills)], count);
            return size;
        }
        default: return random->below(size + 1);  // cut off
    }
}

void evaluate(rwkv_context *ctx, float *state, float *logits) {
    const size_t n_vocab = rwkv_get_n_vocab(ctx);
    uint32_t tokens[5];
    for (size_t i = 0; i < 5; ++i) tokens[i] = static_cast<uint32_t>((n_vocab - 1) * i / 4);
    rwkv_eval(ctx, tokens[4], nullptr, state, logits);
    rwkv_eval(ctx, tokens[1], state, state, nullptr);
    rwkv_eval_sequence(ctx, tokens, 5, state, state, logits);
    rwkv_eval(ctx, static_cast<uint32_t>(n_vocab), state, state, logits);
    // The state is read by two, and never written where another sequence reads it.
    const float *const in[5] = {state, nullptr, state, nullptr, nullptr};
    float *const none[5] = {}, *const over[5] = {nullptr, nullptr, nullptr, nullptr, state};
    float *const wanted[5] = {nullptr, nullptr, logits, nullptr, nullptr};
    rwkvflow_eval_batch(ctx, tokens, 5, in, none, wanted);
    rwkvflow_eval_batch(ctx, tokens, 5, in, over, wanted);  // refused
    rwkvflow_eval_batch(ctx, tokens, 5, nullptr, over, nullptr);
    rwkv_context *other = rwkv_clone_context(ctx, 2);
    if (other != nullptr) rwkv_eval(other, tokens[2], state, nullptr, logits);
    rwkv_free(other);
}

void list(const char *path) {
    rwkvflow_file *file = rwkvflow_file_open(path);
    if (file == nullptr) return;
    int32_t header[6];
    rwkvflow_file_header(file, header);
    rwkvflow_tensor tensor;
    for (uint64_t i = 0; rwkvflow_file_tensor(file, i, &tensor); ++i)
        if (tensor.name == nullptr || strlen(tensor.name) == 0 || tensor.n_dims > 4) abort();
    rwkvflow_file_close(file);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    rwkv_set_print_errors(nullptr, false);
    return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    Random random{seed};
    if (size == 0 || random.below(5) == 0) return LLVMFuzzerMutate(data, size, max_size);
    for (uint32_t left = 1 + random.below(3); left > 0; --left) size = change(data, size, max_size, &random);
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int handle = -1;
    static char path[64];
    if (handle < 0) {
        handle = memfd_create("model", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
    }
    if (ftruncate(handle, 0) != 0 || pwrite(handle, data, size, 0) != static_cast<ssize_t>(size)) abort();

    list(path);
    rwkv_context *ctx = rwkv_init_from_file(path, 1, 0);
    if (ctx == nullptr) {
        // A refusal says why.
        if (rwkv_get_last_error(nullptr) == RWKV_ERROR_NONE || rwkvflow_get_last_message(nullptr)[0] == 0) abort();
    } else {
        // Exactly as large as they must be: one float too many is the sanitizer's to find.
        float *state = static_cast<float *>(malloc(rwkv_get_state_len(ctx) * sizeof(float)));
        float *logits = static_cast<float *>(malloc(rwkv_get_logits_len(ctx) * sizeof(float)));
        if (state != nullptr && logits != nullptr) evaluate(ctx, state, logits);
        free(state);
        free(logits);
        rwkv_free(ctx);
    }
    const char *const kinds[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K"};
    if (size > 0 && data[size - 1] % 8 == 0) {  // on a disk, so not each time
        rwkv_quantize_model_file(path, kQuantized, kinds[data[size - 1] / 8 % 7]);
        unlink(kQuantized);
    }
    return 0;
}
