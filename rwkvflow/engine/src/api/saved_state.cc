// Saved states: the layout is in rwkvflow.h. rwkvflow/engine/states.py reads and writes the same.
#include <stdio.h>

#include "api/context.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "base/whole_file.h"
#include "rwkvflow.h"

using namespace rwkvflow;

namespace {

constexpr size_t kSample = 4096, kSamples = 1024;  // of a model file that its fingerprint is made from
constexpr size_t kDigest = 32;

// The machines that this is built for are little-endian, and so is the layout.
struct Header {
    char magic[8];
    uint32_t layout, zero;
    uint64_t n_state, n_logits, tokens;
    char name[16], version[16];
    uint8_t model[32];
};
static_assert(sizeof(Header) == 104, "as in a file");

void fingerprint_of(const Mapping &map, uint8_t out[32]) {
    Sha256 digest;
    digest.add(&map.bytes, sizeof map.bytes);
    if (map.bytes <= kSample * kSamples) {
        digest.add(map.data, static_cast<size_t>(map.bytes));
    } else {
        for (uint64_t i = 0; i < kSamples; ++i)
            digest.add(map.data + i * (map.bytes - kSample) / (kSamples - 1), kSample);
    }
    digest.end(out);
}

// Of a model in several files: the digest of their fingerprints.
const uint8_t *fingerprint(rwkv_context *ctx) {
    if (ctx->has_fingerprint) return ctx->fingerprint;
    const File &file = ctx->model->file;
    fingerprint_of(file.map, ctx->fingerprint);
    if (file.n_more > 0) {
        Sha256 digest;
        digest.add(ctx->fingerprint, sizeof ctx->fingerprint);
        for (uint32_t i = 0; i < file.n_more; ++i) {
            uint8_t part[32];
            fingerprint_of(file.more[i], part);
            digest.add(part, sizeof part);
        }
        digest.end(ctx->fingerprint);
    }
    ctx->has_fingerprint = true;
    return ctx->fingerprint;
}

Header header_of(rwkv_context *ctx, bool with_logits) {
    Header out = {};
    memcpy(out.magic, "RWKVSTAT", 8);
    out.layout = 1;
    out.n_state = ctx->model->state_len;
    out.n_logits = with_logits ? ctx->model->n_vocab : 0;
    snprintf(out.name, sizeof out.name, "librwkv");
    snprintf(out.version, sizeof out.version, "%s", version_name(ctx->model->version));
    memcpy(out.model, fingerprint(ctx), sizeof out.model);
    return out;
}

uint64_t bytes_of(const rwkv_context *ctx, bool with_logits) {
    const uint64_t floats = add_sat(ctx->model->state_len, with_logits ? ctx->model->n_vocab : 0);
    return add_sat(mul_sat(floats, sizeof(float)), sizeof(Header) + kDigest);
}

void digest_of(const uint8_t *data, uint64_t bytes, uint8_t out[kDigest]) {
    Sha256 digest;
    digest.add(data, static_cast<size_t>(bytes - kDigest));
    digest.end(out);
}

void pack(rwkv_context *ctx, const float *state, const float *logits, uint64_t tokens, uint8_t *out) {
    Header header = header_of(ctx, logits != nullptr);
    header.tokens = tokens;
    const size_t n_state = static_cast<size_t>(header.n_state) * sizeof(float),
                 n_logits = static_cast<size_t>(header.n_logits) * sizeof(float);
    memcpy(out, &header, sizeof header);
    memcpy(out + sizeof header, state, n_state);
    if (logits != nullptr) memcpy(out + sizeof header + n_state, logits, n_logits);
    const uint64_t bytes = bytes_of(ctx, logits != nullptr);
    digest_of(out, bytes, out + (bytes - kDigest));
}

// `name` is what messages call the data. Nothing is written before all is checked.
bool unpack(rwkv_context *ctx, const char *name, const uint8_t *data, uint64_t bytes, float *state, float *logits,
            uint64_t *tokens) {
    const auto refuse = [&](uint32_t what, const char *why) {
        return fail(&ctx->error, RWKV_ERROR_FILE | what, "%s: %s", name, why);
    };
    Header found;
    if (bytes < sizeof found || memcmp(data, "RWKVSTAT", 8) != 0)
        return refuse(RWKV_ERROR_FILE_MAGIC, "no saved state");
    memcpy(&found, data, sizeof found);
    if (found.layout != 1 || found.zero != 0)
        return refuse(RWKV_ERROR_FILE_VERSION, "a saved state of a layout that is not known");
    const Header wanted = header_of(ctx, found.n_logits != 0);
    if (found.n_state != wanted.n_state || found.n_logits != wanted.n_logits ||
        memcmp(found.name, wanted.name, sizeof found.name) != 0 ||
        memcmp(found.version, wanted.version, sizeof found.version) != 0)
        return refuse(RWKV_ERROR_DIMENSION, "a state of another model file, with other sizes or of another version");
    if (memcmp(found.model, wanted.model, sizeof found.model) != 0)
        return refuse(RWKV_ERROR_KEY, "a state of another model file");
    uint8_t digest[kDigest];
    if (bytes == bytes_of(ctx, found.n_logits != 0)) digest_of(data, bytes, digest);
    if (bytes != bytes_of(ctx, found.n_logits != 0) || memcmp(digest, data + (bytes - kDigest), kDigest) != 0)
        return refuse(RWKV_ERROR_DATA, "damaged");
    if (logits != nullptr && found.n_logits == 0) return refuse(RWKV_ERROR_DATA, "a state without the logits after it");
    const size_t n_state = static_cast<size_t>(found.n_state) * sizeof(float);
    if (state != nullptr) memcpy(state, data + sizeof found, n_state);
    if (logits != nullptr)
        memcpy(logits, data + sizeof found + n_state, static_cast<size_t>(found.n_logits) * sizeof(float));
    if (tokens != nullptr) *tokens = found.tokens;
    return true;
}

bool begin(rwkv_context *ctx, bool fine, const char *what) {
    if (ctx == nullptr) return fail(global_error(), RWKV_ERROR_ARGS, "no context");
    ctx->error.flags = 0;
    return fine || fail(&ctx->error, RWKV_ERROR_ARGS, "%s", what);
}

}  // namespace

uint64_t rwkvflow_state_bytes(const struct rwkv_context *ctx, bool with_logits) { return bytes_of(ctx, with_logits); }

bool rwkvflow_state_pack(struct rwkv_context *ctx, const float *state, const float *logits, uint64_t tokens, void *out,
                         uint64_t bytes) {
    if (!begin(ctx, state != nullptr && out != nullptr, "no state or no place for it")) return false;
    if (bytes != bytes_of(ctx, logits != nullptr))
        return fail(&ctx->error, RWKV_ERROR_ARGS, "a saved state has %llu bytes here, not %llu",
                    static_cast<unsigned long long>(bytes_of(ctx, logits != nullptr)),
                    static_cast<unsigned long long>(bytes));
    pack(ctx, state, logits, tokens, static_cast<uint8_t *>(out));
    return true;
}

bool rwkvflow_state_unpack(struct rwkv_context *ctx, const void *data, uint64_t bytes, float *state, float *logits,
                           uint64_t *tokens) {
    return begin(ctx, data != nullptr || bytes == 0, "no data") &&
           unpack(ctx, "the saved state", static_cast<const uint8_t *>(data), bytes, state, logits, tokens);
}

bool rwkvflow_state_save(struct rwkv_context *ctx, const char *path, const float *state, const float *logits,
                         uint64_t tokens) {
    if (!begin(ctx, path != nullptr && state != nullptr, "no path or no state")) return false;
    const uint64_t bytes = bytes_of(ctx, logits != nullptr);
    uint8_t *all = bytes > SIZE_MAX / 2 ? nullptr : static_cast<uint8_t *>(malloc(static_cast<size_t>(bytes)));
    if (all == nullptr) return fail(&ctx->error, RWKV_ERROR_CTX | RWKV_ERROR_ALLOC, "no memory to save a state");
    pack(ctx, state, logits, tokens, all);
    const bool fine = write_file(path, all, bytes, &ctx->error);
    free(all);
    return fine;
}

bool rwkvflow_state_load(struct rwkv_context *ctx, const char *path, float *state, float *logits, uint64_t *tokens) {
    if (!begin(ctx, path != nullptr, "no path")) return false;
    uint8_t *all;
    uint64_t bytes;
    if (!read_file(path, bytes_of(ctx, true), &all, &bytes, &ctx->error)) return false;
    const bool fine = unpack(ctx, path, all, bytes, state, logits, tokens);
    free(all);
    return fine;
}
