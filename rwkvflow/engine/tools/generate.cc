// The same seed and settings give the same text as `rwkvflow generate`, which has the same options.
#include "generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/named.h"
#include "base/text.h"
#include "rwkvflow.h"
#include "start.h"

using rwkvflow::Text;
using rwkvflow::Utf8;

namespace {

constexpr size_t kEnd = 0;  // the token that ends a text
constexpr size_t kBytes = 256;
constexpr int kStops = 32;
const char *const kListed[] = {"rwkv_vocab_v20230424.txt", "20B_tokenizer.json"};  // looked for beside a model
constexpr size_t kPile = 50277, kPilePadded = 50304;                               // rows of models with the latter
constexpr size_t kPadding = 1024;  // rows beyond its tokenizer's ids that a model may have

// An option, and what rwkvflow_sampler_set calls it.
struct Setting {
    const char *option, *name;
    double least, most, value;
};

struct Options {
    const char *model = nullptr, *prompt = nullptr, *vocabulary = nullptr, *state = nullptr, *save = nullptr;
    const char *stops[kStops];
    int n_stops = 0;
    Setting sampling[7] = {{"--temperature", "temperature", 0, 1e300, 1.0},
                           {"--top-p", "top_p", 1e-300, 1, 0.7},
                           {"--top-k", "top_k", 0, 4294967295.0, 0},
                           {"--presence-penalty", "presence", -1e300, 1e300, 0},
                           {"--frequency-penalty", "frequency", -1e300, 1e300, 0},
                           {"--penalty-decay", "decay", 0, 1, 0.996},
                           {}};
    uint64_t seed = 0;
    bool seeded = false, verbose = false;
    size_t max_tokens = 256;
    uint32_t threads = rwkvflow_default_threads();
    double eps = 0;
};

int complain(const char *what, const char *which) {
    fprintf(stderr, "rwkv: %s%s%s\n", what, which[0] == 0 ? "" : ": ", which);
    return 2;
}

bool whole(const char *text, uint64_t largest, uint64_t *out) {
    *out = 0;
    if (text[0] == 0) return false;
    for (; *text != 0; ++text) {
        if (*text < '0' || *text > '9') return false;
        const uint64_t digit = static_cast<uint64_t>(*text - '0');
        if (*out > (largest - digit) / 10) return false;
        *out = *out * 10 + digit;
    }
    return true;
}

bool real(const char *text, double least, double most, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && *out >= least && *out <= most;
}

// 0 where the option is known and its value makes sense.
int option(const char *name, const char *value, Options *o) {
    uint64_t number = 0;
    bool fine = true;
    Setting *setting = o->sampling;
    while (setting->option != nullptr && strcmp(name, setting->option) != 0) ++setting;
    if (setting->option != nullptr) {
        fine = real(value, setting->least, setting->most, &setting->value);
    } else if (strcmp(name, "--max-tokens") == 0 || strcmp(name, "-n") == 0) {
        fine = whole(value, SIZE_MAX / 2, &number);
        o->max_tokens = static_cast<size_t>(number);
    } else if (strcmp(name, "--threads") == 0) {
        fine = whole(value, 256, &number) && number > 0;
        o->threads = static_cast<uint32_t>(number);
    } else if (strcmp(name, "--seed") == 0) {
        fine = o->seeded = whole(value, UINT64_MAX, &o->seed);
    } else if (strcmp(name, "--group-norm-eps") == 0) {
        fine = real(value, 1e-300, 1, &o->eps);
    } else if (strcmp(name, "--vocab") == 0) {
        o->vocabulary = value;
    } else if (strcmp(name, "--state") == 0) {
        o->state = value;
    } else if (strcmp(name, "--save-state") == 0) {
        o->save = value;
    } else if (strcmp(name, "--stop") == 0) {
        if (o->n_stops == kStops) return complain("too many", name);
        if (value[0] != 0) o->stops[o->n_stops++] = value;
    } else {
        return complain("unknown option", name);
    }
    if (!fine) fprintf(stderr, "rwkv: %s: %s makes no sense\n", name, value);
    return fine ? 0 : 2;
}

int parse(int argc, char **argv, Options *o) {
    for (int i = 0; i < argc; ++i) {
        const char *arg = argv[i];
        if (strcmp(arg, "-v") == 0 || strcmp(arg, "--verbose") == 0) {
            o->verbose = true;
        } else if (arg[0] == '-' && arg[1] != 0) {
            if (i + 1 == argc) return complain("a value is missing after", arg);
            if (option(arg, argv[++i], o) != 0) return 2;
        } else if (o->model == nullptr) {
            o->model = arg;
        } else if (o->prompt == nullptr) {
            o->prompt = arg;
        } else {
            return complain("one prompt, in quotes; this is another", arg);
        }
    }
    return o->model == nullptr ? complain("generate needs a model", "") : 0;
}

bool is_gguf(const char *path) {
    FILE *file = rwkvflow::open_named(path, "rb");
    if (file == nullptr) return false;
    char magic[4];
    const bool is = fread(magic, 1, sizeof magic, file) == sizeof magic && memcmp(magic, "GGUF", 4) == 0;
    fclose(file);
    return is;
}

// Where the name of the file itself begins is after this; null where that is all.
const char *last_slash(const char *path) {
    const char *found = strrchr(path, '/');
#if defined(_WIN32)
    const char *back = strrchr(path, '\\');
    if (found == nullptr || (back != nullptr && back > found)) found = back;
#endif
    return found;
}

double now() {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Where the first stop string begins, or the size of the text; *keep: how much of its end may be the beginning of one.
size_t stop_at(const Text &text, const Options &o, size_t *keep) {
    size_t found = text.size();
    *keep = 0;
    for (int n = 0; n < o.n_stops; ++n) {
        const size_t length = strlen(o.stops[n]);
        for (size_t at = 0; at < text.size(); ++at) {
            const size_t left = text.size() - at;
            if (memcmp(text.data() + at, o.stops[n], left < length ? left : length) != 0) continue;
            if (left >= length) found = at < found ? at : found;
            else if (left > *keep) *keep = left;
            break;
        }
    }
    return found;
}

struct SavedState {
    float *state, *logits;
    uint64_t tokens;  // read so far
};

class Generator {
public:
    Generator(const Options &o, rwkv_context *ctx) : o_(o), ctx_(ctx), sampler_(rwkvflow_sampler_create(o.seed)) {}
    Generator(const Generator &) = delete;
    Generator &operator=(const Generator &) = delete;
    ~Generator() {
        rwkvflow_tokenizer_free(tokenizer_);
        rwkvflow_sampler_free(sampler_);
        free(allowed_);
        free(now_.state);
        free(now_.logits);
        free(mark_.state);
        free(mark_.logits);
    }

    int run() {
        if (!open_vocabulary() || !reserve()) return 1;
        if (o_.state != nullptr && !rwkvflow_state_load(ctx_, o_.state, now_.state, now_.logits, &now_.tokens))
            return 1;
        fresh_ = o_.state == nullptr;
        Text prompt;
        if (!read_prompt(&prompt)) return 1;
        const double begin = now();
        if (!feed(prompt.data(), prompt.size())) return 1;
        const uint32_t beginning = kEnd;
        if (fresh_ && !eval(&beginning, 1)) return 1;
        const double begun = now();
        const uint64_t read = now_.tokens;
        if (!write()) return 1;
        if (o_.verbose) {
            fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(o_.seed));
            fprintf(stderr, "read %llu tokens in %.2f s\n", static_cast<unsigned long long>(read), begun - begin);
            fprintf(stderr, "wrote %zu tokens in %.2f s, %.1f a second\n", written_, now() - begun,
                    static_cast<double>(written_) / (now() - begun));
        }
        return o_.save == nullptr || rwkvflow_state_save(ctx_, o_.save, now_.state, now_.logits, now_.tokens) ? 0 : 1;
    }

private:
    bool reserve() {
        const size_t n_vocab = rwkv_get_n_vocab(ctx_), n_state = rwkv_get_state_len(ctx_) * sizeof(float);
        now_.state = static_cast<float *>(malloc(n_state));
        now_.logits = static_cast<float *>(malloc(n_vocab * sizeof(float)));
        mark_.state = static_cast<float *>(malloc(n_state));
        mark_.logits = static_cast<float *>(malloc(n_vocab * sizeof(float)));
        allowed_ = static_cast<uint32_t *>(calloc((n_vocab + 31) / 32, sizeof(uint32_t)));
        if (now_.state == nullptr || now_.logits == nullptr || mark_.state == nullptr || mark_.logits == nullptr ||
            allowed_ == nullptr)
            return no_memory();
        for (size_t id = 0; id < n_vocab; ++id) {
            const char *piece;
            size_t size;
            if (id == kEnd || rwkvflow_tokenizer_piece(tokenizer_, static_cast<uint32_t>(id), &piece, &size))
                allowed_[id / 32] |= 1u << (id % 32);
        }
        const Setting *s = o_.sampling;
        while (sampler_ != nullptr && s->option != nullptr && rwkvflow_sampler_set(sampler_, s->name, s->value)) ++s;
        return s->option == nullptr;
    }

    static bool no_memory() {
        fprintf(stderr, "rwkv: no memory\n");
        return false;
    }

    bool open_vocabulary() {
        const size_t n_vocab = rwkv_get_n_vocab(ctx_);
        const char *path = o_.vocabulary;
        Text beside;
        if (path == nullptr) path = is_gguf(o_.model) ? o_.model : variable("RWKV_VOCAB");  // a GGUF has its own
        if (path == nullptr || path[0] == 0) {
            if (n_vocab == kBytes) {
                tokenizer_ = rwkvflow_tokenizer_bytes();
                return tokenizer_ != nullptr;
            }
            const char *slash = last_slash(o_.model), *listed = kListed[n_vocab == kPile || n_vocab == kPilePadded];
            beside.add(o_.model, slash == nullptr ? 0 : static_cast<size_t>(slash + 1 - o_.model));
            beside.add(listed, strlen(listed) + 1);
            FILE *file = beside.failed() ? nullptr : rwkvflow::open_named(beside.data(), "rb");
            if (file == nullptr) {
                fprintf(stderr,
                        "rwkv: a model with %zu tokens needs a vocabulary: name it with --vocab or RWKV_VOCAB, or put\n"
                        "  %s beside the model\n",
                        n_vocab, listed);
                return false;
            }
            fclose(file);
            path = beside.data();
        }
        tokenizer_ = rwkvflow_tokenizer_open(path);
        if (tokenizer_ == nullptr) return false;
        const uint32_t ids = rwkvflow_tokenizer_size(tokenizer_);
        if (ids <= n_vocab && n_vocab - ids < kPadding) return true;
        fprintf(stderr, "rwkv: %s has token ids up to %u, the model a vocabulary of %zu: it is another model's\n", path,
                ids - 1, n_vocab);
        return false;
    }

    bool read_prompt(Text *out) const {
        if (o_.prompt == nullptr) return true;
        if (strcmp(o_.prompt, "-") != 0) {
            out->add(o_.prompt, strlen(o_.prompt));
        } else {
            Utf8 decoder;
            char buffer[4096];
            size_t count;
            while ((count = fread(buffer, 1, sizeof buffer, stdin)) > 0) decoder.put(buffer, count, out);
            decoder.end(out);
        }
        return !out->failed() || no_memory();
    }

    bool eval(const uint32_t *tokens, size_t count) {
        if (!rwkv_eval_sequence(ctx_, tokens, count, fresh_ ? nullptr : now_.state, now_.state, now_.logits))
            return false;
        fresh_ = false;
        now_.tokens += count;
        return true;
    }

    bool feed(const char *text, size_t size) {
        size_t count;
        if (!rwkvflow_tokenizer_encode(tokenizer_, text, size, nullptr, 0, &count)) return false;
        if (count == 0) return true;
        uint32_t *ids = static_cast<uint32_t *>(calloc(count, sizeof(uint32_t)));
        if (ids == nullptr) return no_memory();
        const bool fine = rwkvflow_tokenizer_encode(tokenizer_, text, size, ids, count, &count) && eval(ids, count);
        free(ids);
        return fine;
    }

    void copy_state() {
        memcpy(mark_.state, now_.state, rwkv_get_state_len(ctx_) * sizeof(float));
        memcpy(mark_.logits, now_.logits, rwkv_get_logits_len(ctx_) * sizeof(float));
        mark_.tokens = now_.tokens;
    }

    // What was read since the mark counts as not read; then the text up to the stop string is read.
    bool rewind(const Text &since, size_t size) {
        if (marked_) {
            SavedState other = now_;
            now_ = mark_;
            mark_ = other;
        }
        return feed(since.data(), size);
    }

    void show(Text *text, size_t size) {
        fwrite(text->data(), 1, size, stdout);
        if (size > 0) {
            fflush(stdout);
            last_ = text->data()[size - 1];
        }
        text->drop(0, size);
    }

    bool write() {
        Utf8 decoder;
        Text held, since;  // what may be the beginning of a stop string; what was said since the mark
        bool stopped = false;
        while (written_ < o_.max_tokens && !stopped) {
            uint32_t token;
            if (!rwkvflow_choose(ctx_, &sampler_, &now_.logits, &allowed_, 1, &token)) return false;
            if (token == RWKVFLOW_NO_TOKEN) {
                fprintf(stderr, "rwkv: the model's logits are not finite\n");
                return false;
            }
            if (token == kEnd) break;
            ++written_;
            const char *piece;
            size_t size, keep;
            rwkvflow_tokenizer_piece(tokenizer_, token, &piece, &size);
            const size_t before = held.size();
            decoder.put(piece, size, &held);
            since.add(held.data() + before, held.size() - before);
            if (held.failed() || since.failed()) return no_memory();
            const size_t found = stop_at(held, o_, &keep);
            if (found < held.size()) {
                const size_t behind = held.size() - found;
                show(&held, found);
                held.cut(0);
                if (o_.save != nullptr && !rewind(since, since.size() - behind)) return false;
                stopped = true;
                break;
            }
            const bool hold = o_.n_stops > 0 && (keep > 0 || decoder.waiting());
            if (hold && !marked_) copy_state();
            marked_ = hold;
            if (!hold) since.cut(0);
            show(&held, held.size() - keep);
            if ((written_ < o_.max_tokens || o_.save != nullptr) && !eval(&token, 1)) return false;
        }
        if (!stopped) decoder.end(&held);
        show(&held, held.size());
        if (last_ != '\n') putchar('\n');
        fflush(stdout);
        return ferror(stdout) == 0;
    }

    const Options &o_;
    rwkv_context *ctx_;
    rwkvflow_sampler *sampler_;
    uint32_t *allowed_ = nullptr;  // bits of the ids that have a token
    rwkvflow_tokenizer *tokenizer_ = nullptr;
    SavedState now_ = {}, mark_ = {};
    bool fresh_ = true, marked_ = false;
    size_t written_ = 0;
    char last_ = 0;
};

}  // namespace

int generate(int argc, char **argv) {
    Options o;
    if (parse(argc, argv, &o) != 0) return 2;
    if (!o.seeded) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        o.seed = static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
    }
    rwkv_context *ctx = rwkv_init_from_file(o.model, o.threads, 0);
    if (ctx == nullptr) return 1;
    int code = 1;
    if (o.eps == 0 || rwkvflow_set_option(ctx, "group_norm_eps", o.eps)) code = Generator(o, ctx).run();
    rwkv_free(ctx);
    return code;
}
