// Names and shapes are those of llama.cpp's convert_hf_to_gguf.py (conversion/rwkv.py); rwkvflow/worker/maps/gguf.py
// has the same, and tests hold one against the other.
#include "model/gguf.h"

#include <stdio.h>

#include "base/gguf.h"
#include "base/memory.h"
#include "model/gguf_parts.h"
#include "quantize/quantize.h"
#include "rwkvflow.h"

namespace rwkvflow {

namespace {

struct Name {
    const char *theirs, *ours;
};

constexpr Name kGlobal[] = {
    {"token_embd.weight", "emb.weight"},           {"token_embd_norm.weight", "blocks.0.ln0.weight"},
    {"token_embd_norm.bias", "blocks.0.ln0.bias"}, {"output_norm.weight", "ln_out.weight"},
    {"output_norm.bias", "ln_out.bias"},           {"output.weight", "head.weight"},
};
constexpr Name kCommon[] = {
    {"attn_norm.weight", "ln1.weight"},
    {"attn_norm.bias", "ln1.bias"},
    {"attn_norm_2.weight", "ln2.weight"},
    {"attn_norm_2.bias", "ln2.bias"},
    {"time_mix_ln.weight", "att.ln_x.weight"},
    {"time_mix_ln.bias", "att.ln_x.bias"},
    {"time_mix_receptance.weight", "att.receptance.weight"},
    {"time_mix_key.weight", "att.key.weight"},
    {"time_mix_value.weight", "att.value.weight"},
    {"time_mix_output.weight", "att.output.weight"},
    {"channel_mix_key.weight", "ffn.key.weight"},
    {"channel_mix_value.weight", "ffn.value.weight"},
};
constexpr Name kSix[] = {
    {"time_mix_gate.weight", "att.gate.weight"},
    {"time_mix_lerp_x.weight", "att.time_maa_x"},
    // Of files made before these five were fused.
    {"time_mix_lerp_w.weight", "att.time_maa_w"},
    {"time_mix_lerp_k.weight", "att.time_maa_k"},
    {"time_mix_lerp_v.weight", "att.time_maa_v"},
    {"time_mix_lerp_r.weight", "att.time_maa_r"},
    {"time_mix_lerp_g.weight", "att.time_maa_g"},
    {"time_mix_w1.weight", "att.time_maa_w1"},
    {"time_mix_w2.weight", "att.time_maa_w2"},
    {"time_mix_decay.weight", "att.time_decay"},
    {"time_mix_decay_w1.weight", "att.time_decay_w1"},
    {"time_mix_decay_w2.weight", "att.time_decay_w2"},
    {"time_mix_first.weight", "att.time_faaaa"},
    {"channel_mix_receptance.weight", "ffn.receptance.weight"},
    {"channel_mix_lerp_k.weight", "ffn.time_maa_k"},
    {"channel_mix_lerp_r.weight", "ffn.time_maa_r"},
};
constexpr Name kSeven[] = {
    {"time_mix_lerp_fused.weight", "att.x_rwkvag"},
    {"time_mix_w0.weight", "att.w0"},
    {"time_mix_w1.weight", "att.w1"},
    {"time_mix_w2.weight", "att.w2"},
    {"time_mix_a0.weight", "att.a0"},
    {"time_mix_a1.weight", "att.a1"},
    {"time_mix_a2.weight", "att.a2"},
    {"time_mix_v0.weight", "att.v0"},
    {"time_mix_v1.weight", "att.v1"},
    {"time_mix_v2.weight", "att.v2"},
    {"time_mix_g1.weight", "att.g1"},
    {"time_mix_g2.weight", "att.g2"},
    {"time_mix_k_k.weight", "att.k_k"},
    {"time_mix_k_a.weight", "att.k_a"},
    {"time_mix_r_k.weight", "att.r_k"},
    {"channel_mix_lerp_k.weight", "ffn.x_k"},
};
constexpr const char *kFused = "time_mix_lerp_fused.weight";  // in rwkv6 of these, one after the other
constexpr const char *kFusedParts[] = {"att.time_maa_w", "att.time_maa_k", "att.time_maa_v", "att.time_maa_r",
                                       "att.time_maa_g"};
constexpr uint32_t kFusedCount = 5;
constexpr uint64_t kOurName = 64;  // bytes that any name of ours takes, with its zero
constexpr uint32_t kMostHalvings = 100;

// Our number of ggml's type; -1 for one that librwkv does not run.
int32_t type_of(uint32_t number) {
    switch (number) {
        case 0: return kF32;
        case 1: return kF16;
        case 2: return kQ4_0;
        case 3: return kQ4_1;
        case 6: return kQ5_0;
        case 7: return kQ5_1;
        case 8: return kQ8_0;
        case 10: return kQ2_K;
        case 11: return kQ3_K;
        case 12: return kQ4_K;
        case 13: return kQ5_K;
        case 14: return kQ6_K;
        case 18: return kIQ3_XXS;
        case 20: return kIQ4_NL;
        case 21: return kIQ3_S;
        case 23: return kIQ4_XS;
        case 30: return kBF16;
        default: return -1;
    }
}

template <size_t N>
const char *ours_of(const Name (&names)[N], const GgufString &theirs) {
    for (const Name &name : names)
        if (theirs.is(name.theirs)) return name.ours;
    return nullptr;
}

struct Reader {
    File *file;
    Error *error;
    bool seven;
    uint64_t head_size;
    char *names;

    // Our name of a tensor (its last part for one of a layer, whose number is *layer); null for an unknown one.
    const char *name_of(const GgufString &name, uint64_t *layer, bool *global, GgufString *rest) const {
        *layer = 0;
        *global = true;
        if (const char *ours = ours_of(kGlobal, name); ours != nullptr) return ours;
        *global = false;
        if (name.size < 6 || memcmp(name.data, "blk.", 4) != 0) return nullptr;
        uint64_t at = 4;
        for (; at < name.size && name.data[at] >= '0' && name.data[at] <= '9' && at < 13; ++at)
            *layer = *layer * 10 + static_cast<uint64_t>(name.data[at] - '0');
        const bool plain = at > 4 && (name.data[4] != '0' || at == 5);  // one way to write a number
        if (!plain || at >= name.size || name.data[at] != '.') return nullptr;
        *rest = {name.data + at + 1, name.size - at - 1};
        if (const char *ours = ours_of(kCommon, *rest); ours != nullptr) return ours;
        if (!seven && rest->is(kFused)) return kFusedParts[0];
        return seven ? ours_of(kSeven, *rest) : ours_of(kSix, *rest);
    }

    void put(const Tensor &tensor, const char *ours, uint64_t layer, bool global) {
        Tensor *to = &file->tensors[file->count];
        char *name = names + file->count++ * kOurName;
        if (global) snprintf(name, kOurName, "%s", ours);
        else snprintf(name, kOurName, "blocks.%u.%s", static_cast<uint32_t>(layer), ours);
        *to = tensor;
        to->name = name;
    }

    // Checks one tensor and puts it into the table, or its parts; with the table absent it is only counted.
    bool take(const GgufPart &part, const GgufTensor &from, uint64_t *count) {
        const uint32_t where = RWKV_ERROR_MODEL_PARAMS;
        const int length = static_cast<int>(from.name.size < 80 ? from.name.size : 80);
        const char *text = from.name.data;
        uint64_t layer;
        bool global;
        GgufString rest = {"", 0};
        const char *ours = name_of(from.name, &layer, &global, &rest);
        if (ours == nullptr)
            return fail(error, where | RWKV_ERROR_UNSUPPORTED, "%.*s is no tensor of rwkv%d that librwkv knows", length,
                        text, seven ? 7 : 6);
        const bool parts = !global && !seven && rest.is(kFused);
        *count += parts ? kFusedCount : 1;
        if (file->tensors == nullptr) return true;
        Tensor t = {};
        t.type = type_of(from.type);
        if (t.type < 0)
            return fail(error, where | RWKV_ERROR_DATA_TYPE, "%.*s has ggml's type %u, which librwkv does not run",
                        length, text, from.type);
        t.elements = 1;
        bool small = true;  // as .bin files, whose dimensions are int32
        for (uint64_t dim : from.dims) {
            t.elements = mul_sat(t.elements, dim);
            small &= dim <= INT32_MAX;
        }
        if (!small || !shape(from, ours, &t))
            return fail(error, where | RWKV_ERROR_SHAPE, "%.*s has a shape that makes no sense", length, text);
        const uint64_t columns = from.dims[0], row = row_bytes(t.type, columns);
        if (row == 0)
            return fail(error, where | RWKV_ERROR_SHAPE, "%.*s: rows of %llu elements cannot be %s", length, text,
                        static_cast<unsigned long long>(columns), type_name(t.type));
        t.bytes = t.elements == UINT64_MAX ? UINT64_MAX : mul_sat(row, t.elements / columns);
        t.offset = add_sat(part.data_at, from.offset);
        if (t.offset > part.map->bytes || t.bytes > part.map->bytes - t.offset)
            return fail(error, where | RWKV_ERROR_DATA, "%.*s: its data lie outside of the file", length, text);
        t.data = part.map->data + t.offset;
        if (!parts) {
            put(t, ours, layer, global);
            return true;
        }
        if (from.n_dims != 4 || from.dims[3] != kFusedCount || t.elements != kFusedCount * columns)
            return fail(error, where | RWKV_ERROR_SHAPE, "%.*s: it should be five vectors", length, text);
        t.n_dims = 1;
        t.dims[0] = t.elements = columns;
        t.dims[1] = t.dims[2] = 1;
        t.bytes = row;
        for (const char *fused : kFusedParts) {
            put(t, fused, layer, false);
            t.offset += row;
            t.data += row;
        }
        return true;
    }

    // PyTorch's order, and what tells the number of heads with a row for each. False where that does not fit.
    bool shape(const GgufTensor &from, const char *ours, Tensor *t) const {
        for (uint64_t &dim : t->dims) dim = 1;
        if (strcmp(ours, "att.r_k") == 0 || strcmp(ours, "att.time_faaaa") == 0) {
            t->n_dims = 2;
            t->dims[0] = t->elements / head_size;
            t->dims[1] = head_size;
            return t->elements != UINT64_MAX && t->elements % head_size == 0;
        }
        if (from.n_dims <= kMaxDims) {
            t->n_dims = from.n_dims;
            for (uint32_t i = 0; i < from.n_dims; ++i) t->dims[i] = from.dims[from.n_dims - 1 - i];
            return true;
        }
        t->n_dims = 2;  // the fused vectors
        t->dims[0] = from.dims[3];
        t->dims[1] = from.dims[0];
        return from.dims[1] == 1 && from.dims[2] == 1;
    }

    bool walk(GgufParts *parts, uint64_t *count) {
        *count = 0;
        for (GgufPart &part : *parts) {
            GgufCursor cursor = part.gguf.first_tensor();
            for (uint64_t i = 0; i < part.gguf.tensors(); ++i) {
                GgufTensor tensor;
                if (!part.gguf.tensor(&cursor, i, &tensor, error) || !take(part, tensor, count)) return false;
            }
            part.data_at = part.gguf.data_at(cursor);
        }
        return true;
    }
};

// Where a tensor's data lie in memory, which tells apart those of different parts, too.
uintptr_t place_of(const Tensor *tensor) { return reinterpret_cast<uintptr_t>(tensor->data); }

int by_place(const void *a, const void *b) {
    const uintptr_t one = place_of(*static_cast<const Tensor *const *>(a)),
                    two = place_of(*static_cast<const Tensor *const *>(b));
    return one < two ? -1 : one > two ? 1 : 0;
}

// No two tensors share a byte: a file that has such is damaged, or made to be misread.
bool check_overlap(const File &file, Error *error) {
    const Tensor **sorted = static_cast<const Tensor **>(calloc(file.count, sizeof(Tensor *)));
    if (sorted == nullptr) return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for the tensors");
    for (uint64_t i = 0; i < file.count; ++i) sorted[i] = &file.tensors[i];
    qsort(sorted, file.count, sizeof *sorted, by_place);
    bool fine = true;
    for (uint64_t i = 1; fine && i < file.count; ++i)
        if (place_of(sorted[i]) < place_of(sorted[i - 1]) + sorted[i - 1]->bytes)
            fine = fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_DATA, "%s overlaps %s", sorted[i]->name,
                        sorted[i - 1]->name);
    free(sorted);
    return fine;
}

// The keys of this architecture. False with an error.
bool read_sizes(const Gguf &gguf, Reader *reader, File *file, Error *error) {
    char key[64];
    uint64_t layers, width, version = 3;
    const auto number = [&](const char *name, uint64_t largest, uint64_t missing, uint64_t *out) {
        snprintf(key, sizeof key, "rwkv%d.%s", reader->seven ? 7 : 6, name);
        return gguf.number(key, largest, missing, out, error);
    };
    uint64_t rescale = 0;
    if (!number("block_count", INT32_MAX, 0, &layers) || !number("embedding_length", INT32_MAX, 0, &width) ||
        !number("wkv.head_size", INT32_MAX, 0, &reader->head_size) ||
        (!reader->seven && !number("rescale_every_n_layers", INT32_MAX, 0, &rescale)))
        return false;
    if (layers == 0 || width == 0 || reader->head_size == 0)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DIMENSION,
                    "%s: width %llu, layers %llu, head size %llu make no sense", gguf.name(),
                    static_cast<unsigned long long>(width), static_cast<unsigned long long>(layers),
                    static_cast<unsigned long long>(reader->head_size));
    if (rescale != 0 && layers / rescale > kMostHalvings)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DIMENSION, "%s: %llu layers halved every %llu", gguf.name(),
                    static_cast<unsigned long long>(layers), static_cast<unsigned long long>(rescale));
    file->rescale = static_cast<uint32_t>(rescale);
    GgufValue eps;
    snprintf(key, sizeof key, "rwkv%d.attention.layer_norm_epsilon", reader->seven ? 7 : 6);
    if (gguf.find(key, &eps, error)) {
        if (eps.kind == kGgufFloat32) memcpy(&file->layer_norm_eps, eps.data, sizeof file->layer_norm_eps);
        if (!(file->layer_norm_eps > 0) || file->layer_norm_eps > 1)
            return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_DATA, "%s: its %s makes no sense", gguf.name(), key);
    } else if (error->flags != 0) {
        return false;
    }
    memcpy(&version, file->map.data + 4, 4);
    const int32_t header[6] = {static_cast<int32_t>(kGgufMagic), static_cast<int32_t>(version & 0xff), 0,
                               static_cast<int32_t>(width),      static_cast<int32_t>(layers),         kF32};
    memcpy(file->header, header, sizeof header);
    return true;
}

// What only the tensors tell: the vocabulary, and the type that most of the file is of.
bool read_header(File *file, Error *error) {
    const Tensor *emb = file_find(*file, "emb.weight"), *key = file_find(*file, "blocks.0.ffn.key.weight");
    if (emb == nullptr || key == nullptr)
        return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_PARAM_MISSING, "the file has no tensor %s",
                    emb == nullptr ? "token_embd.weight" : "blk.0.channel_mix_key.weight");
    if (emb->n_dims != 2 || emb->dims[0] > INT32_MAX)
        return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_SHAPE, "token_embd.weight should be a matrix");
    file->header[kVocab] = static_cast<int32_t>(emb->dims[0]);
    file->header[kType] = key->type;
    return true;
}

}  // namespace

bool read_gguf(const char *path, File *file, Error *error) {
    GgufParts parts;
    GgufString architecture;
    uint64_t count = 0;
    error->flags = 0;
    if (!parts.open(path, file, error) || !parts.first().text("general.architecture", &architecture, error))
        return false;
    const bool seven = architecture.is("rwkv7");
    if (!seven && !architecture.is("rwkv6")) {
        const bool shown = architecture.printable() && architecture.size < 40;
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_UNSUPPORTED,
                    "%s: a GGUF of \"%.*s\"; librwkv runs those of rwkv6 and rwkv7", path,
                    shown ? static_cast<int>(architecture.size) : 1, shown ? architecture.data : "?");
    }
    Reader reader = {file, error, seven, 0, nullptr};
    if (!read_sizes(parts.first(), &reader, file, error) || !reader.walk(&parts, &count)) return false;
    if (count == 0 || count >= UINT32_MAX / 4)
        return fail(error, RWKV_ERROR_MODEL_PARAMS | RWKV_ERROR_PARAM_MISSING, "%s: %llu tensors", path,
                    static_cast<unsigned long long>(count));
    file->tensors = static_cast<Tensor *>(calloc(count, sizeof(Tensor)));
    file->names = reader.names = static_cast<char *>(calloc(count, kOurName));
    if (file->tensors == nullptr || file->names == nullptr)
        return fail(error, RWKV_ERROR_FILE | RWKV_ERROR_ALLOC, "no memory for %llu tensors",
                    static_cast<unsigned long long>(count));
    return reader.walk(&parts, &count) && file_index(file, error) && check_overlap(*file, error) &&
           read_header(file, error);
}

}  // namespace rwkvflow
