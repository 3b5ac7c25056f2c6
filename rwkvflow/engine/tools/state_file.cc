#if !defined(_WIN32)
#define _FILE_OFFSET_BITS 64
#endif
#include "state_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rwkvflow.h"

namespace {

constexpr size_t kSample = 4096, kSamples = 1024;

uint32_t rotated(uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

// FIPS 180-4.
class Sha256 {
public:
    void add(const void *data, size_t size) {
        const uint8_t *bytes = static_cast<const uint8_t *>(data);
        length_ += size;
        for (size_t i = 0; i < size; ++i) {
            block_[have_++] = bytes[i];
            if (have_ == 64) compress();
        }
    }

    void end(uint8_t out[32]) {
        const uint64_t bits = length_ * 8;
        const uint8_t first = 0x80, zero = 0;
        add(&first, 1);
        while (have_ != 56) add(&zero, 1);
        for (int i = 7; i >= 0; --i) {
            const uint8_t byte = static_cast<uint8_t>(bits >> (8 * i));
            add(&byte, 1);
        }
        for (int i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(h_[i / 4] >> (24 - 8 * (i % 4)));
    }

private:
    void compress() {
        static const uint32_t k[64] = {
            0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01,
            0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc,
            0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147,
            0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
            0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08,
            0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
            0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
        uint32_t w[64];
        for (int i = 0; i < 16; ++i)
            w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 | static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
                   static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
        for (int i = 16; i < 64; ++i) {
            const uint32_t a = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
            const uint32_t b = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + a + w[i - 7] + b;
        }
        uint32_t s[8];
        memcpy(s, h_, sizeof s);
        for (int i = 0; i < 64; ++i) {
            const uint32_t e = rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25);
            const uint32_t one = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            const uint32_t a = rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22);
            const uint32_t two = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            memmove(s + 1, s, 7 * sizeof s[0]);
            s[4] += one;
            s[0] = one + two;
        }
        for (int i = 0; i < 8; ++i) h_[i] += s[i];
        have_ = 0;
    }

    uint32_t h_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t block_[64];
    size_t have_ = 0;
    uint64_t length_ = 0;
};

// The machines that this is built for are little-endian, and so is the file.
struct Header {
    char magic[8];
    uint32_t layout, zero;
    uint64_t n_state, n_logits, tokens;
    char name[16], version[16];
    uint8_t model[32];
};
static_assert(sizeof(Header) == 104, "as in the file");

int seek(FILE *file, uint64_t to) {
#if defined(_WIN32)
    return _fseeki64(file, static_cast<long long>(to), SEEK_SET);
#else
    return fseeko(file, static_cast<off_t>(to), SEEK_SET);
#endif
}

bool size_of(FILE *file, uint64_t *out) {
#if defined(_WIN32)
    if (_fseeki64(file, 0, SEEK_END) != 0) return false;
    *out = static_cast<uint64_t>(_ftelli64(file));
#else
    if (fseeko(file, 0, SEEK_END) != 0) return false;
    *out = static_cast<uint64_t>(ftello(file));
#endif
    return true;
}

bool fingerprint(const char *path, uint8_t out[32]) {
    FILE *file = fopen(path, "rb");
    uint64_t size = 0;
    if (file == nullptr) return false;
    bool fine = size_of(file, &size);
    Sha256 digest;
    digest.add(&size, sizeof size);
    char buffer[kSample];
    const bool whole = size <= kSample * kSamples;
    const uint64_t pieces = whole ? (size + kSample - 1) / kSample : kSamples;
    for (uint64_t i = 0; fine && i < pieces; ++i) {
        const uint64_t at = whole ? i * kSample : i * (size - kSample) / (kSamples - 1);
        const size_t want = size - at < kSample ? static_cast<size_t>(size - at) : kSample;
        fine = seek(file, at) == 0 && fread(buffer, 1, want, file) == want;
        digest.add(buffer, want);
    }
    fclose(file);
    digest.end(out);
    return fine;
}

bool header_of(rwkv_context *ctx, const char *model, Header *out) {
    memset(out, 0, sizeof *out);
    memcpy(out->magic, "RWKVSTAT", 8);
    out->layout = 1;
    out->n_state = rwkv_get_state_len(ctx);
    out->n_logits = rwkv_get_logits_len(ctx);
    snprintf(out->name, sizeof out->name, "librwkv");
    snprintf(out->version, sizeof out->version, "%s", rwkvflow_get_version(ctx));
    return fingerprint(model, out->model);
}

bool complain(const char *path, const char *what) {
    fprintf(stderr, "rwkv: %s: %s\n", path, what);
    return false;
}

void digest_of(const Header &header, const SavedState &saved, uint8_t out[32]) {
    Sha256 digest;
    digest.add(&header, sizeof header);
    digest.add(saved.state, static_cast<size_t>(header.n_state) * sizeof(float));
    digest.add(saved.logits, static_cast<size_t>(header.n_logits) * sizeof(float));
    digest.end(out);
}

}  // namespace

bool write_state(const char *path, rwkv_context *ctx, const char *model, const SavedState &saved) {
    Header header;
    if (!header_of(ctx, model, &header)) return complain(model, "cannot be read");
    header.tokens = saved.tokens;
    uint8_t digest[32];
    digest_of(header, saved, digest);
    const size_t length = strlen(path);
    char *part = static_cast<char *>(malloc(length + 6));
    if (part == nullptr) return complain(path, "no memory");
    memcpy(part, path, length);
    memcpy(part + length, ".part", 6);
    FILE *file = fopen(part, "wb");
    bool fine = file != nullptr;
    if (fine) {
        fine = fwrite(&header, sizeof header, 1, file) == 1 &&
               fwrite(saved.state, sizeof(float), static_cast<size_t>(header.n_state), file) == header.n_state &&
               fwrite(saved.logits, sizeof(float), static_cast<size_t>(header.n_logits), file) == header.n_logits &&
               fwrite(digest, sizeof digest, 1, file) == 1;
        fine = fclose(file) == 0 && fine;
#if defined(_WIN32)
        if (fine) remove(path);  // a rename there replaces nothing
#endif
        fine = fine && rename(part, path) == 0;
        if (!fine) remove(part);
    }
    free(part);
    return fine || complain(path, "cannot be written");
}

bool read_state(const char *path, rwkv_context *ctx, const char *model, SavedState *saved) {
    Header wanted, found;
    if (!header_of(ctx, model, &wanted)) return complain(model, "cannot be read");
    FILE *file = fopen(path, "rb");
    if (file == nullptr) return complain(path, "cannot be opened");
    const char *problem = nullptr;
    uint8_t told[32], digest[32];
    if (fread(&found, sizeof found, 1, file) != 1 || memcmp(found.magic, wanted.magic, 8) != 0) {
        problem = "no saved state";
    } else if (found.layout != wanted.layout) {
        problem = "a saved state of a layout that is not known";
    } else if (found.n_state != wanted.n_state || found.n_logits != wanted.n_logits ||
               memcmp(found.name, wanted.name, sizeof found.name) != 0 ||
               memcmp(found.version, wanted.version, sizeof found.version) != 0 ||
               memcmp(found.model, wanted.model, sizeof found.model) != 0) {
        problem = "a state of another model file";
    } else if (fread(saved->state, sizeof(float), static_cast<size_t>(found.n_state), file) != found.n_state ||
               fread(saved->logits, sizeof(float), static_cast<size_t>(found.n_logits), file) != found.n_logits ||
               fread(told, sizeof told, 1, file) != 1 || fgetc(file) != EOF) {
        problem = "damaged";
    } else {
        digest_of(found, *saved, digest);
        if (memcmp(told, digest, sizeof digest) != 0) problem = "damaged";
    }
    fclose(file);
    saved->tokens = found.tokens;
    return problem == nullptr || complain(path, problem);
}
