/*
 * Attaches to a file in a page cache, reads it on the device, and changes a few bytes of it there.
 *
 *   attach FILE [SOCKET]
 *
 * With a socket, the cache is that of the daemon that listens there (`pageferry serve`), and the bytes are read
 * where they are, by address. Without one, the program makes a cache of its own on a software device, whose
 * memory the CPU cannot address.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <pageferry.h>

#define PIECE 65536
#define SEGMENTS 16

static const char note[] = "pageferry was here";

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s (%s)\n", what, pf_error_text(), pf_error_kind());
    exit(1);
}

/* FNV-1a, continued. */
static uint64_t checksum(uint64_t sum, const unsigned char *bytes, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        sum = (sum ^ bytes[i]) * UINT64_C(0x100000001b3);
    return sum;
}

#define CHECKSUM_START UINT64_C(0xcbf29ce484222325)

/* Reads a pin's bytes: in place if the device's memory is in this process, else through copies. */
static uint64_t checksum_of_pin(pf_pin *pin, uint64_t length, const char **how)
{
    static unsigned char piece[PIECE];
    pf_segment segments[SEGMENTS];
    size_t count = SEGMENTS;
    uint64_t sum = CHECKSUM_START;

    if (pf_pin_address(pin, 0, length, segments, &count) != 0)
        fail("pf_pin_address");
    *how = "by address";
    for (size_t i = 0; i < count; i++) {
        if (segments[i].flags & PF_SEGMENT_MAPPED) {
            const void *bytes = (const void *)(uintptr_t)segments[i].address;
            sum = checksum(sum, bytes, segments[i].length);
            continue;
        }
        *how = "through copies";
        for (uint64_t done = 0; done < segments[i].length;) {
            uint64_t left = segments[i].length - done;
            size_t part = left < PIECE ? (size_t)left : PIECE;
            if (pf_pin_read(pin, segments[i].offset + done, piece, part) != 0)
                fail("pf_pin_read");
            sum = checksum(sum, piece, part);
            done += part;
        }
    }
    return sum;
}

/* What any program reads. */
static uint64_t checksum_of_file(const char *path, char *start, size_t start_length)
{
    static unsigned char piece[PIECE];
    uint64_t sum = CHECKSUM_START, done = 0;
    ssize_t got;
    int fd = open(path, O_RDONLY);

    if (fd < 0) {
        perror(path);
        exit(1);
    }
    while ((got = read(fd, piece, PIECE)) > 0) {
        if (done == 0)
            memcpy(start, piece, (size_t)got < start_length ? (size_t)got : start_length);
        sum = checksum(sum, piece, (uint64_t)got);
        done += (uint64_t)got;
    }
    if (got < 0) {
        perror(path);
        exit(1);
    }
    close(fd);
    return sum;
}

int main(int argc, char **argv)
{
    char start[sizeof note] = "";
    const char *how;
    pf_cache *cache;
    pf_file *file;
    pf_pin *pin;
    uint64_t length, before, after, written;
    int result;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: %s FILE [SOCKET]\n", argv[0]);
        return 2;
    }
    printf("pageferry %s\n", pf_version());

    if (argc == 3)
        result = pf_cache_connect(argv[2], &cache);
    else
        result = pf_cache_open(UINT64_C(64) << 20, 0, &cache);
    if (result != 0)
        fail("opening the cache");
    if (pf_file_open(cache, argv[1], PF_READ | PF_WRITE, &file) != 0)
        fail(argv[1]);
    if (pf_file_size(file, &length) != 0)
        fail("pf_file_size");

    if (pf_file_pin(file, 0, length, PF_PIN_READ, -1, &pin) != 0)
        fail("pinning for reading");
    before = checksum_of_pin(pin, length, &how);
    if (pf_pin_release(pin, 0, NULL) != 0)
        fail("pf_pin_release");
    printf("the device has %016" PRIx64 " (%" PRIu64 " bytes, read %s)\n", before, length, how);
    printf("the file has   %016" PRIx64 "\n", checksum_of_file(argv[1], start, sizeof start));

    if (pf_file_pin(file, 0, sizeof note, PF_PIN_WRITE, -1, &pin) != 0)
        fail("pinning for writing");
    if (pf_pin_write(pin, 0, note, sizeof note) != 0)
        fail("pf_pin_write");
    if (pf_pin_release(pin, 0, &written) != 0)
        fail("pf_pin_release");
    printf("%" PRIu64 " bytes went back to the file\n", written);

    if (pf_file_pin(file, 0, length, PF_PIN_READ, -1, &pin) != 0)
        fail("pinning for reading");
    after = checksum_of_pin(pin, length, &how);
    if (pf_pin_release(pin, 0, NULL) != 0)
        fail("pf_pin_release");
    printf("the device has %016" PRIx64 "\n", after);
    printf("the file has   %016" PRIx64 "\n", checksum_of_file(argv[1], start, sizeof start));
    result = after != checksum_of_file(argv[1], start, sizeof start) || memcmp(start, note, sizeof note) != 0;

    if (pf_file_close(file) != 0)
        fail("pf_file_close");
    if (pf_cache_close(cache) != 0)
        fail("pf_cache_close");
    puts(result == 0 ? "both agree" : "they differ");
    return result;
}
