// Text that grows, and bytes to text without ever cutting a character in two.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace rwkvflow {

class Text {
public:
    Text() = default;
    Text(const Text &) = delete;
    Text &operator=(const Text &) = delete;
    ~Text() { free(data_); }

    const char *data() const { return data_ == nullptr ? "" : data_; }
    size_t size() const { return size_; }
    bool failed() const { return failed_; }  // some text is missing for want of memory

    void add(const void *from, size_t count) {
        if (count == 0 || !grow(count)) return;
        memcpy(data_ + size_, from, count);
        size_ += count;
    }
    void add(char c) { add(&c, 1); }
    void drop(size_t at, size_t count) {
        if (count == 0) return;
        memmove(data_ + at, data_ + at + count, size_ - at - count);
        size_ -= count;
    }
    void clear() { size_ = 0; }
    void cut(size_t size) { size_ = size < size_ ? size : size_; }

private:
    bool grow(size_t count) {
        if (size_ + count <= room_) return true;
        const size_t room = 2 * (size_ + count) + 64;
        char *wider = static_cast<char *>(realloc(data_, room));
        if (wider == nullptr) {
            failed_ = true;
            return false;
        }
        data_ = wider;
        room_ = room;
        return true;
    }

    char *data_ = nullptr;
    size_t size_ = 0, room_ = 0;
    bool failed_ = false;
};

// UTF-8 as Python's decoder takes it with errors="replace": each longest beginning of a character that is none becomes
// one U+FFFD.
class Utf8 {
public:
    void put(const char *bytes, size_t count, Text *out) {
        for (size_t i = 0; i < count; ++i) put(static_cast<uint8_t>(bytes[i]), out);
    }

    bool waiting() const { return have_ > 0; }

    void end(Text *out) {
        if (have_ > 0) replace(out);
        have_ = 0;
    }

private:
    static void replace(Text *out) { out->add("\xef\xbf\xbd", 3); }

    void put(uint8_t byte, Text *out) {
        if (have_ > 0) {
            if (byte >= low_ && byte <= high_) {
                part_[have_++] = static_cast<char>(byte);
                low_ = 0x80;
                high_ = 0xbf;
                if (have_ == want_) {
                    out->add(part_, have_);
                    have_ = 0;
                }
                return;
            }
            replace(out);
            have_ = 0;
        }
        if (byte < 0x80) {
            out->add(static_cast<char>(byte));
            return;
        }
        if (byte < 0xc2 || byte > 0xf4) {
            replace(out);
            return;
        }
        want_ = byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
        low_ = byte == 0xe0 ? 0xa0 : byte == 0xf0 ? 0x90 : 0x80;
        high_ = byte == 0xed ? 0x9f : byte == 0xf4 ? 0x8f : 0xbf;
        part_[0] = static_cast<char>(byte);
        have_ = 1;
    }

    char part_[4];
    size_t have_ = 0, want_ = 0;
    uint8_t low_ = 0, high_ = 0;
};

}  // namespace rwkvflow
