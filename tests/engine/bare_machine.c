// A PC's ROM that runs one static Linux program for x86-64 and answers its system calls, so that an emulated processor
// needs no operating system, which would take longer to start than the program takes to run. The program and its files
// stand on the first disk, where bochs.py has put them; what is written, to whatever file, goes to the first serial
// port.
//
// One thread, privileged; addresses are physical ones; no interrupts. Only instructions that the processor does not
// know have a handler: any other fault ends the emulator, which tells where and why.
#include <stddef.h>
#include <stdint.h>

struct File {
    uint64_t at, bytes;  // from the start of the disk
    char name[48];
};
// The disk. The first file is the program; behind the files stand the arguments and the environment, each with its NUL.
struct Job {
    uint64_t sectors, files, arguments, environment;
    struct File file[];
};

enum { SERIAL = 0x3f8, DISK = 0x1f0, SHUTDOWN = 0x8900, SECTOR = 512, PAGE = 4096, DESCRIPTORS = 16 };
enum { FAULT_STACK = 0x70000 };  // below the one for system calls, in the assembly
// Of 256 MiB, as Bochs takes long to start with more: the program's own place ends where its break begins.
enum { MIB = 1 << 20, BREAK = 32 * MIB, PATCHES = 48 * MIB, HEAP = 64 * MIB, DISK_COPY = 192 * MIB, STACK = 248 * MIB };
static const struct Job *const job = (const struct Job *)DISK_COPY;

__asm__(
    ".pushsection .reset, \"ax\"\n"
    ".code16\n"
    "  ljmp $0xf000, $_start - 0xf0000\n"
    "  .balign 16\n"
    ".popsection\n"

    ".pushsection .text, \"ax\"\n"
    ".global _start\n"
    "_start:\n"
    "  cli\n"
    "  lgdtl %cs:gdt_pointer - 0xf0000\n"
    "  movl $0x40620, %eax\n"  // CR4: physical addresses of 64 bits, SSE and its exceptions, XSAVE
    "  movl %eax, %cr4\n"
    "  movl $pages, %eax\n"
    "  movl %eax, %cr3\n"
    "  movl $0xc0000080, %ecx\n"  // EFER: SYSCALL, 64 bits
    "  movl $0x101, %eax\n"
    "  xorl %edx, %edx\n"
    "  wrmsr\n"
    "  movl $0x80010023, %eax\n"  // CR0: paging, write protection, x87 errors, WAIT, protection
    "  movl %eax, %cr0\n"
    "  ljmpl $8, $wide\n"
    ".code64\n"
    "wide:\n"
    "  movl $16, %eax\n"
    "  movl %eax, %ds\n"
    "  movl %eax, %es\n"
    "  movl %eax, %ss\n"
    "  movl $0x80000, %esp\n"
    "  xorl %ecx, %ecx\n"
    "  xorl %edx, %edx\n"
    "  movl $0xe7, %eax\n"  // x87, SSE, AVX and the three parts of AVX-512
    "  xsetbv\n"
    "  fninit\n"
    "  call run\n"

    // The program may use the 128 bytes below its stack, and system calls keep all registers but three.
    "system_call:\n"
    "  movq %rsp, program_stack\n"
    "  movl $0x80000, %esp\n"
    "  pushq %rcx\n"
    "  pushq %r11\n"
    "  pushq %rdi\n"
    "  pushq %rsi\n"
    "  pushq %rdx\n"
    "  pushq %r10\n"
    "  pushq %r8\n"
    "  pushq %r9\n"
    "  movq %r10, %rcx\n"
    "  pushq %rax\n"
    "  pushq %rax\n"
    "  call answer\n"
    "  addq $16, %rsp\n"
    "  popq %r9\n"
    "  popq %r8\n"
    "  popq %r10\n"
    "  popq %rdx\n"
    "  popq %rsi\n"
    "  popq %rdi\n"
    "  popq %r11\n"
    "  popq %rcx\n"
    "  movq program_stack, %rsp\n"
    "  pushq %r11\n"
    "  popfq\n"
    "  jmpq *%rcx\n"

    "unknown_instruction:\n"
    "  pushq %rax\n"
    "  pushq %rcx\n"
    "  pushq %rdx\n"
    "  pushq %rsi\n"
    "  pushq %rdi\n"
    "  pushq %r8\n"
    "  pushq %r9\n"
    "  pushq %r10\n"
    "  pushq %r11\n"
    "  movq 72(%rsp), %rdi\n"
    "  cld\n"
    "  call replace\n"
    "  popq %r11\n"
    "  popq %r10\n"
    "  popq %r9\n"
    "  popq %r8\n"
    "  popq %rdi\n"
    "  popq %rsi\n"
    "  popq %rdx\n"
    "  popq %rcx\n"
    "  popq %rax\n"
    "  iretq\n"

    "gdt:\n"
    "  .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff\n"
    "gdt_pointer:\n"
    "  .word 23\n"
    "  .long gdt\n"
    // Four pages of 1 GiB, marked as read and written: this is a ROM.
    "  .balign 4096\n"
    "pages:\n"
    "  .quad pages + 4096 + 0x27\n"
    "  .zero 4088\n"
    "  .quad 0xe7, 0x400000e7, 0x800000e7, 0xc00000e7\n"
    "  .zero 4064\n"
    ".popsection\n");

extern const char system_call[], unknown_instruction[];
uint64_t program_stack;

static void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static uint8_t in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static void set_register(uint32_t which, uint64_t value) {
    __asm__ volatile("wrmsr" ::"c"(which), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}
void *memcpy(void *to, const void *from, size_t bytes) {
    void *const start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
    return start;
}
void *memset(void *to, int value, size_t bytes) {
    void *const start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return start;
}
static size_t length(const char *text) {
    size_t n = 0;
    while (text[n] != 0) ++n;
    return n;
}
static int same(const char *a, const char *b) {
    while (*a == *b && *a != 0) ++a, ++b;
    return *a == *b;
}

static void print(const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) {
        while ((in8(SERIAL + 5) & 0x20) == 0) {
        }
        out8(SERIAL, ((const uint8_t *)from)[i]);
    }
}
static void print_number(uint64_t number, uint64_t base) {
    char digits[20];
    size_t n = sizeof digits;
    do digits[--n] = "0123456789abcdef"[number % base];
    while ((number /= base) != 0);
    print(digits + n, sizeof digits - n);
}

// The last line of what is printed is the exit code, and why, where it is not the program's own.
static _Noreturn void end(uint64_t code, const char *why, uint64_t number) {
    print("\n", 1);
    print_number(code & 255, 10);
    if (why != NULL) {
        print(why, length(why));
        print("0x", 2);
        print_number(number, 16);
    }
    while ((in8(SERIAL + 5) & 0x40) == 0) {
    }
    for (const char *each = "Shutdown"; *each != 0; ++each) out8(SHUTDOWN, (uint8_t)*each);
    for (;;) __asm__ volatile("hlt");
}

// AVX-VNNI, of which no emulated processor knows: AVX-512's instruction for the same product is put in its place. It is
// longer, so it stands elsewhere, and both are left by jumps. Taken are vpdpbusd's with 256 bits.
static uint8_t *patch;
static void jump(uint8_t *from, const uint8_t *to) {
    const int32_t distance = (int32_t)(to - (from + 5));
    from[0] = 0xe9;
    memcpy(from + 1, &distance, 4);
}
void replace(uint8_t *at) {
    const uint8_t first = at[1], second = at[2], operands = at[4];
    if (at[0] != 0xc4 || (first & 31) != 2 || (second & 0x87) != 5 || at[3] != 0x50)
        end(126, " unknown instruction at ", (uint64_t)at);
    const int mode = operands >> 6, indexed = mode != 3 && (operands & 7) == 4,
              relative = mode == 0 && (operands & 7) == 5;
    const uint8_t *from = at + 5;
    uint8_t *const start = patch;
    const uint8_t wide[] = {0x62, (first & 0xe0) | 0x12, (second & 0x78) | 5, 0x28, 0x50, operands};
    memcpy(patch, wide, sizeof wide);
    patch += sizeof wide;
    if (indexed) *patch++ = *from++;
    if (mode == 1) {  // a distance of 8 bits counts in 32 bytes there
        const int32_t distance = (int8_t)*from++;
        start[5] += 0x40;
        memcpy(patch, &distance, 4);
        patch += 4;
    } else if (mode == 2 || relative || (indexed && mode == 0 && (start[6] & 7) == 5)) {
        int32_t distance;
        memcpy(&distance, from, 4);
        from += 4;
        if (relative) distance += (int32_t)(from - (patch + 4));
        memcpy(patch, &distance, 4);
        patch += 4;
    }
    jump(patch, from);
    patch += 5;
    jump(at, start);
}

static uint64_t program_break;
static struct {
    const struct File *file;  // none: to write to
    uint64_t at;
    int open;
} descriptors[DESCRIPTORS];

static uint8_t used[(DISK_COPY - HEAP) / PAGE];
static int64_t map(uint64_t bytes, const struct File *file, uint64_t offset) {
    const uint64_t pages = (bytes + PAGE - 1) / PAGE;
    uint64_t page = 0, found = 0;
    for (; page < sizeof used && found < pages; ++page) found = used[page] ? 0 : found + 1;
    if (found < pages) return -12;
    page -= pages;
    memset(used + page, 1, pages);
    char *const start = (char *)HEAP + page * PAGE;
    memset(start, 0, pages * PAGE);
    if (file != NULL && offset < file->bytes) {
        const uint64_t rest = file->bytes - offset;
        memcpy(start, (const char *)job + file->at + offset, rest < bytes ? rest : bytes);
    }
    return (int64_t)start;
}

static int64_t unmap(uint64_t start, uint64_t bytes) {
    const uint64_t page = (start - HEAP) / PAGE, pages = (bytes + PAGE - 1) / PAGE;
    if (start < HEAP || page + pages > sizeof used) return -22;
    memset(used + page, 0, pages);
    return 0;
}

static int64_t open(const char *path, int writing) {
    const struct File *file = NULL;
    for (uint64_t i = 1; i < job->files && !writing; ++i)
        if (same(path, job->file[i].name)) file = &job->file[i];
    if (file == NULL && !writing) return -2;
    for (int64_t d = 3; d < DESCRIPTORS; ++d) {
        if (descriptors[d].open) continue;
        descriptors[d].file = file;
        descriptors[d].at = 0;
        descriptors[d].open = 1;
        return d;
    }
    return -24;
}

static int64_t read(uint64_t descriptor, void *to, uint64_t bytes) {
    const struct File *file = descriptors[descriptor].file;
    const uint64_t rest = file == NULL ? 0 : file->bytes - descriptors[descriptor].at;
    if (bytes > rest) bytes = rest;
    if (bytes > 0) memcpy(to, (const char *)job + file->at + descriptors[descriptor].at, bytes);
    descriptors[descriptor].at += bytes;
    return (int64_t)bytes;
}

static int64_t write(const void *from, uint64_t bytes) {
    print(from, bytes);
    return (int64_t)bytes;
}

struct Part {
    void *at;
    uint64_t bytes;
};
static int64_t read_parts(uint64_t descriptor, const struct Part *parts, uint64_t count) {
    int64_t all = 0;
    for (uint64_t i = 0; i < count; ++i) all += read(descriptor, parts[i].at, parts[i].bytes);
    return all;
}
static int64_t write_parts(const struct Part *parts, uint64_t count) {
    int64_t all = 0;
    for (uint64_t i = 0; i < count; ++i) all += write(parts[i].at, parts[i].bytes);
    return all;
}

static int64_t status(uint64_t descriptor, uint64_t *to) {
    memset(to, 0, 144);
    to[3] = 0100644;  // st_mode: a regular file
    if (descriptors[descriptor].file != NULL) to[6] = descriptors[descriptor].file->bytes;
    return 0;
}

// Linux's system calls, by its numbers, as far as the programs need them.
int64_t answer(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t number) {
    switch (number) {
        case 0: return read(a % DESCRIPTORS, (void *)b, c);
        case 1: return write((const void *)b, c);
        case 2: return open((const char *)a, (b & 3) != 0);
        case 3: return descriptors[a % DESCRIPTORS].open = 0;
        case 5: return status(a % DESCRIPTORS, (void *)b);
        case 9: return map(b, (d & 32) != 0 ? NULL : descriptors[e % DESCRIPTORS].file, f);  // mmap
        case 11: return unmap(a, b);
        case 12: return (int64_t)(program_break = a >= BREAK && a <= PATCHES ? a : program_break);  // brk
        case 19: return read_parts(a % DESCRIPTORS, (const void *)b, c);
        case 20: return write_parts((const void *)b, c);
        case 10:
        case 13:
        case 14:
        case 28: return 0;  // mprotect, rt_sigaction, rt_sigprocmask, madvise
        case 72:
        case 202: return 0;   // fcntl, futex
        case 82: return 0;    // rename: there are no names
        case 16: return -25;  // ioctl: no terminal
        case 25: return -12;  // mremap: no memory
        case 60:
        case 231: end(a, NULL, 0);
        case 158: return set_register(0xc0000100, b), 0;  // arch_prctl: the thread's own data
        case 204: return *(uint64_t *)c = 1, 8;           // sched_getaffinity: one processor
        case 218: return 1;                               // set_tid_address
        case 309: return *(uint32_t *)a = 0, 0;           // getcpu: that one
        default: end(126, " unknown system call ", number);
    }
}

static void load(uint32_t sector, uint32_t count) {
    uint8_t *to = (uint8_t *)DISK_COPY + (uint64_t)sector * SECTOR;
    for (; count > 0; ++sector, --count) {
        out8(DISK + 2, 1);
        out8(DISK + 3, (uint8_t)sector);
        out8(DISK + 4, (uint8_t)(sector >> 8));
        out8(DISK + 5, (uint8_t)(sector >> 16));
        out8(DISK + 6, (uint8_t)(0xe0 | sector >> 24));
        out8(DISK + 7, 0x20);  // read
        uint8_t now;
        do now = in8(DISK + 7);
        while ((now & 0x80) != 0);
        if ((now & 9) != 8) end(126, " no such sector: ", sector);
        uint64_t words = SECTOR / 2;
        __asm__ volatile("rep insw" : "+D"(to), "+c"(words) : "d"(DISK) : "memory");
    }
}

// Tables that the processor writes to, or that have addresses in pieces.
static uint64_t segments[5], state[13], handlers[14];
static void set_handler(void) {
    struct __attribute__((packed)) {
        uint16_t limit;
        const void *at;
    } table = {sizeof segments - 1, segments};
    memcpy((char *)state + 36, &(uint64_t){FAULT_STACK}, 8);  // not the program's stack: see system_call
    segments[1] = 0x00af9b000000ffff;
    segments[2] = 0x00cf93000000ffff;
    segments[3] = 0x0000890000000000 | (uint64_t)state << 16 | (sizeof state - 1);
    __asm__ volatile("lgdt %0\n ltr %w1" ::"m"(table), "r"(24));
    const uint64_t at = (uint64_t)unknown_instruction;
    handlers[12] = (at & 0xffff) | 8 << 16 | (uint64_t)0x8e01 << 32 | at >> 16 << 48;
    table.limit = sizeof handlers - 1;
    table.at = handlers;
    __asm__ volatile("lidt %0" ::"m"(table));
}

struct Program {  // the head of an ELF file
    uint8_t magic[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, segments, sections;
    uint32_t flags;
    uint16_t bytes, segment_bytes, segment_count;
};
struct Segment {
    uint32_t type, flags;
    uint64_t offset, address, physical, file_bytes, memory_bytes, alignment;
};

_Noreturn void run(void) {
    out8(SERIAL + 3, 0x83);  // the fastest, 8 bits
    out8(SERIAL, 1);
    out8(SERIAL + 1, 0);
    out8(SERIAL + 3, 3);
    set_register(0xc0000081, (uint64_t)8 << 32);  // SYSCALL's segments and address
    set_register(0xc0000082, (uint64_t)system_call);
    set_handler();
    program_break = BREAK;
    patch = (uint8_t *)PATCHES;
    load(0, 1);
    if (job->sectors > (STACK - 4 * MIB - DISK_COPY) / SECTOR) end(126, " too large a disk, sectors: ", job->sectors);
    load(1, (uint32_t)job->sectors - 1);
    const struct Program *program = (const void *)((const char *)job + job->file[0].at);
    if (program->type != 2 || program->machine != 62)
        end(126, " no static program for x86-64 but of type ", program->type);
    const struct Segment *parts = (const void *)((const char *)program + program->segments);
    uint64_t base = 0;
    for (uint64_t i = 0; i < program->segment_count; ++i) {
        if (parts[i].type != 1) continue;
        if (parts[i].address + parts[i].memory_bytes > BREAK)
            end(126, " too large a program, up to ", parts[i].address);
        memset((void *)parts[i].address, 0, parts[i].memory_bytes);
        memcpy((void *)parts[i].address, (const char *)program + parts[i].offset, parts[i].file_bytes);
        if (parts[i].offset == 0) base = parts[i].address;
    }
    uint64_t *const stack = (uint64_t *)STACK, *at = stack;
    const char *text = (const char *)&job->file[job->files];
    *at++ = job->arguments;
    for (uint64_t i = 0; i < job->arguments + job->environment; ++i, text += length(text) + 1) {
        if (i == job->arguments) *at++ = 0;
        *at++ = (uint64_t)text;
    }
    if (job->environment == 0) *at++ = 0;
    // Where the program's segments are, a page's size, 16 bytes that are to be random.
    const uint64_t facts[] = {
        0, 3, base + program->segments, 4, program->segment_bytes, 5, program->segment_count, 6, PAGE, 25, STACK, 0, 0,
    };
    memcpy(at, facts, sizeof facts);
    __asm__ volatile("movq %0, %%rsp\n xorl %%edx, %%edx\n xorl %%ebp, %%ebp\n jmpq *%1" ::"r"(stack),
                     "r"(program->entry));
    __builtin_unreachable();
}
