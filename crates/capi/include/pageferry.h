/*
 * pageferry: a page cache in device memory for ordinary files.
 *
 * Made from crates/capi/src by `PAGEFERRY_BLESS=1 cargo test -p pageferry-capi header`: edit there.
 *
 *   cc program.c $(pkg-config --cflags --libs pageferry)
 *
 * Results. Functions that return int return 0, or a negative errno number; then pf_error_text() and
 * pf_error_kind() say more. What each fails with most often is at each; besides that, all of them:
 * -EINVAL for an argument that makes no sense, a handle that has been closed, or one of another kind;
 * -ECONNRESET when the daemon of a connected cache is gone; -ENODEV, -EIO when the device is; -EIO, of the
 * kind "panicked", for a bug in the library. A failed call holds nothing, and leaves NULL for a handle.
 *
 * Handles (pf_cache, pf_file, pf_pin, pf_map) are not pointers to memory. Each is to be closed by the function
 * for that. What hangs on another (a pin on its file, a file on its cache) keeps that alive: the order does not
 * matter. Closed handles are recognised and refused, for ever.
 *
 * Threads. Every function may be called by any thread, with any handle, at the same time as others.
 *
 * Waiting. Functions that wait for other users' pins say so; all that move bytes wait for files and devices.
 * None can be interrupted by a signal.
 *
 * fork(2). A child does not use what its parent made. Calls that would need it are refused, mostly with -EPERM (kind
 * "forked"), and addresses are a SIGSEGV there. It may make a cache of its own, if no other thread of the parent was
 * in a call at the time of the fork, as with malloc(3).
 *
 * Pointers. Strings end with NUL; paths are bytes, in no particular encoding. A string or a buffer stays as it is
 * during the call. Places for results may be NULL where the result is not wanted, except for handles. What is passed
 * as a buffer is not memory that the device changes (a mapping, or an address of a pin that another thread stores to).
 *
 * All numbers of bytes and offsets count bytes of the file, unless said otherwise.
 */


#ifndef PAGEFERRY_H
#define PAGEFERRY_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface: what is compiled against one runs with every library whose major number
 * (these 16 bits shifted right) is the same and whose minor number (the lower 16 bits) is not lower.
 */
#define PF_ABI_VERSION 1

/**
 * For reading. (Every file and mapping is.)
 */
#define PF_READ 1

/**
 * For writing, too.
 */
#define PF_WRITE 2

/**
 * Pin for loads. Read pins of the same bytes share.
 */
#define PF_PIN_READ 0

/**
 * Pin for loads and stores. Excludes every other pin of its bytes.
 */
#define PF_PIN_WRITE 1

/**
 * As PF_PIN_WRITE, without reading first what is there: pages that the pin covers whole start as zeros. What is
 * not stored to keeps the file's bytes.
 */
#define PF_PIN_OVERWRITE 2

/**
 * Leaves what was stored on the device for now, where that can be kept from others (see pf_pin_release()).
 */
#define PF_KEEP_AWAY 1

/**
 * The CPU may use the address.
 */
#define PF_SEGMENT_MAPPED 1

/**
 * The CPU may store there, too.
 */
#define PF_SEGMENT_WRITABLE 2

/**
 * A page cache in one device's memory.
 */
typedef struct pf_cache pf_cache;

/**
 * A file in a cache.
 */
typedef struct pf_file pf_file;

/**
 * A mapping of a range of a file into this process.
 */
typedef struct pf_map pf_map;

/**
 * A range of a file that is held on the device.
 */
typedef struct pf_pin pf_pin;

/**
 * A stretch of a pin.
 */
typedef struct pf_segment {
  /**
   * Where its first byte is: of this process's memory with PF_SEGMENT_MAPPED, else of the device's address space.
   */
  uint64_t address;
  /**
   * The offset of that byte in the file.
   */
  uint64_t offset;
  /**
   * Bytes.
   */
  uint64_t length;
  /**
   * PF_SEGMENT_...
   */
  uint64_t flags;
} pf_segment;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What the calling thread's last failed call failed with, in words, for people. Empty if none failed yet; a
 * call that succeeds leaves it. Never NULL. It may be read until the next call of this thread that fails.
 */
const char *pf_error_text(void);

/**
 * The kind of that failure, a stable word for programs where the number does not say enough: "would-deadlock",
 * "past-eof", "disconnected", ... Empty if none failed yet. Valid as long as pf_error_text().
 */
const char *pf_error_kind(void);

/**
 * The version of the interface that this library has: its PF_ABI_VERSION.
 */
uint32_t pf_abi_version(void);

/**
 * The version of this library, for people: "0.1.0". Valid for ever.
 */
const char *pf_version(void);

/**
 * Makes a cache of this process's own, on a software device of so many bytes of memory, in frames of
 * frame_bytes: a power of two from 65536 to 67108864, or 0 for the usual 2097152.
 *
 * -EINVAL: there is no such device; -ENOMEM: no memory for it.
 */
int pf_cache_open(uint64_t device_memory_bytes, uint64_t frame_bytes, struct pf_cache **cache);

/**
 * Connects to the daemon that listens at a socket: its copies are shared with every other process that uses it,
 * and stay when this one ends. When the daemon goes, calls fail with -ECONNRESET and what was held is gone;
 * what had been released is safe. Connect again.
 *
 * -ENOENT, -ECONNREFUSED: nobody listens there; -EUSERS: the daemon has no room; -EPROTO: it is of another release.
 */
int pf_cache_connect(const char *socket, struct pf_cache **cache);

/**
 * Writes what only the device has of all files back to them (to the page cache: pf_file_sync() makes it durable).
 * Waits for write pins over such bytes. `written` gets the number of bytes, if it is not NULL.
 *
 * -EDEADLK: this thread holds such a pin; what writing a file fails with: the others are written all the same.
 */
int pf_cache_flush(const struct pf_cache *cache, uint64_t *written);

/**
 * Ends a handle. The cache itself goes with its last file, pin and mapping; what only the device has is
 * written back then, which has nobody to tell of an error: pf_cache_flush() or pf_file_close() before has.
 */
int pf_cache_close(struct pf_cache *cache);

/**
 * Opens a file for reading (PF_READ) or for reading and writing (PF_READ | PF_WRITE). Never creates or truncates.
 *
 * -EINVAL: not a regular file; what open(2) fails with.
 */
int pf_file_open(const struct pf_cache *cache, const char *name, uint32_t flags, struct pf_file **file);

/**
 * Opens the file behind a descriptor, in the descriptor's access mode. The descriptor stays the caller's; while
 * it is open it counts as another user's, which costs the reuse of copies: close it.
 *
 * -EBADF: no descriptor; -EINVAL: not of a regular file, or write-only.
 */
int pf_file_open_fd(const struct pf_cache *cache, int fd, struct pf_file **file);

/**
 * Closes a file; the handle is gone whatever the result. If nothing else (a pin, a mapping, a call of another
 * thread) uses this opening, and the cache has no other of the file, what only the device has is written back;
 * otherwise that is done when the last of them goes, and nobody is told of errors.
 *
 * What writing the file fails with: the cache keeps the bytes, and opening the file again finds them.
 */
int pf_file_close(struct pf_file *file);

/**
 * The file's size now, in bytes.
 *
 * What fstat(2) fails with.
 */
int pf_file_size(const struct pf_file *file, uint64_t *bytes);

/**
 * Writes what only the device has of a range back to the file (to the page cache; it stays on the device as a
 * copy). Waits for write pins over such bytes. A length that reaches too far, as UINT64_MAX does, means: to the end.
 *
 * -EDEADLK: this thread holds such a pin; what writing fails with: the bytes stay on the device, try again.
 */
int pf_file_flush(const struct pf_file *file, uint64_t offset, uint64_t length);

/**
 * fsync(2) that covers what only the device has.
 *
 * As pf_file_flush(), and what fsync(2) fails with.
 */
int pf_file_sync(const struct pf_file *file);

/**
 * Brings what it can of a range onto the device, up to the cache's size; waits for nobody's pins. The length as in
 * pf_file_flush(). `bytes` gets the number of bytes brought or found there, if it is not NULL.
 *
 * What reading the file fails with.
 */
int pf_file_prefetch(const struct pf_file *file, uint64_t offset, uint64_t length, uint64_t *bytes);

/**
 * Takes what nobody has pinned of a range off the device; what only the device has is written back first. The
 * length as in pf_file_flush(). `bytes` gets the number of bytes taken off, if it is not NULL.
 *
 * What writing the file fails with: nothing that could not be written was dropped.
 */
int pf_file_evict(const struct pf_file *file, uint64_t offset, uint64_t length, uint64_t *bytes);

/**
 * Holds a range on the device: when this returns, its bytes are there, at least as new as every change of the file
 * that was complete before the call, and stay there until the release.
 *
 * Waits for pins of others that exclude this one: timeout_ms milliseconds, without end if it is -1, not at all if it
 * is 0; in any case until the bytes are copied. The range may reach to the end of the page that holds the end of file.
 *
 * The pin belongs to the calling thread: a later wait of this thread, or of one that waits for it, for these bytes is
 * refused with -EDEADLK, since it could never end. Any thread may use and release the pin all the same; if another one
 * is going to release it, pf_pin_detach() says so.
 *
 * -EFAULT: past the end of the file; -EINVAL: an empty range, an unknown mode; -EACCES: the file is not open for
 * writing; -EAGAIN: it would wait; -ETIMEDOUT; -EDEADLK; -ENOMEM: everything on the device is pinned, or the range is
 * larger than the cache; -EUSERS: a limit of the daemon; what reading the file fails with.
 */
int pf_file_pin(const struct pf_file *file,
                uint64_t offset,
                uint64_t length,
                uint32_t mode,
                int64_t timeout_ms,
                struct pf_pin **pin);

/**
 * Takes a pin off the thread that it belongs to, for another thread to release. A wait for it is never taken for a
 * deadlock any more.
 */
int pf_pin_detach(const struct pf_pin *pin);

/**
 * Releases a pin; the handle is gone whatever the result, and so is what its addresses pointed to. When it returns,
 * what was stored is in the file (in the page cache). `written` gets the number of bytes, if it is not NULL.
 *
 * With PF_KEEP_AWAY it is left on the device, and whoever needs it waits until it is home; where nothing can make
 * others wait, it is written back, and the result is -EBUSY (kind "unguarded"), which is no loss.
 *
 * Waits for calls of other threads that use the pin.
 *
 * What writing the file fails with: the bytes stay on the device, and a flush tries again. -ESTALE: the file
 * has been cut below bytes that were stored; all before the cut are kept. -ECONNRESET: the daemon is gone, and what
 * was stored under this pin with it.
 */
int pf_pin_release(struct pf_pin *pin, uint32_t flags, uint64_t *written);

/**
 * Copies bytes of the device, from an offset of the file on, which the pin holds. Always works, wherever the
 * device's memory is.
 *
 * -EPERM: the pin does not hold them; -EFAULT: the file has been cut below them.
 */
int pf_pin_read(const struct pf_pin *pin, uint64_t offset, void *buf, size_t length);

/**
 * Copies bytes to the device, as pf_pin_read() does from it. The file has them when the pin is released.
 *
 * As pf_pin_read(); -EPERM also for a pin for reading.
 */
int pf_pin_write(const struct pf_pin *pin, uint64_t offset, const void *buf, size_t length);

/**
 * Where a part of a pin is: its stretches, ascending, without gaps. `count` says how many `segments` has room for, and
 * gets how many there are; one is enough unless the range crosses a multiple of 64 GiB or a region of the device. With
 * `segments` NULL, only the number is told.
 *
 * PF_SEGMENT_MAPPED: the device's memory is in this process's (a connected cache of a software device). Everything
 * asked for is mapped by this call, a frame at a time: ask for what is going to be used, not for 16 GiB of which one
 * page is. The addresses stay right until the pin is released; after that, whatever is there belongs to somebody
 * else. With PF_SEGMENT_WRITABLE (pins for writing) stores by address are as good as pf_pin_write(): they go to copies
 * of their pages, which the release finds and sends. Two threads that store to the same page at the same time, one
 * by address and one by pf_pin_write(), may lose the former's store. Stores elsewhere are a SIGSEGV.
 *
 * If the file is cut under a pin, what is beyond the cut reads as stale or zero bytes; no signal is raised.
 * (pf_pin_read() says -EFAULT.) A child made by fork(2) does not have the memory.
 *
 * Without PF_SEGMENT_MAPPED the address is one of the device's, which the CPU cannot follow (a cache of its own):
 * pf_pin_read() and pf_pin_write() are the way there.
 *
 * -EPERM: the pin does not hold the range; -ERANGE: there are more stretches than room for them, `count` says how many,
 * and nothing is mapped; -ENOMEM: the process has too many mappings (vm.max_map_count: each frame takes two);
 * -EFAULT: the file has been cut below the range.
 */
int pf_pin_address(const struct pf_pin *pin,
                   uint64_t offset,
                   uint64_t length,
                   struct pf_segment *segments,
                   size_t *count);

/**
 * Maps a range of a file, as mmap(2) with MAP_SHARED does, but coherent with the device: a touch of bytes that only
 * the device has, or that are under a write pin, waits until they are in the file. PF_READ or PF_READ | PF_WRITE.
 *
 * A touch that could only wait for ever (for a pin of the same thread), of bytes that cannot be brought home, or past
 * the end of the file, is a SIGBUS. A child made by fork(2) does not have the mapping.
 *
 * -EINVAL: an empty range, or one that cannot be mapped; -EACCES: the file is not open for writing; -EOPNOTSUPP:
 * the system has no userfaultfd for this process; -ENOMEM.
 */
int pf_file_map(const struct pf_file *file, uint64_t offset, uint64_t length, uint32_t flags, struct pf_map **map);

/**
 * Where the byte at the offset asked for is. Valid until pf_map_close().
 */
int pf_map_address(const struct pf_map *map, void **address);

/**
 * How many bytes are mapped from there on: what was asked for, and the rest of the last page.
 */
int pf_map_length(const struct pf_map *map, uint64_t *bytes);

/**
 * Unmaps; the handle is gone whatever the result. Nobody is to touch the memory any more.
 */
int pf_map_close(struct pf_map *map);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PAGEFERRY_H */
