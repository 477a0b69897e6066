/* Loaded before libc (LD_PRELOAD): below one folder, the disk is full or read-only from the k-th write on.
   A write is whatever changes the disk, by whichever library. Linux alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long first = -1, *count; /* counted in memory that forked children share */
static int failure;

void disk_set(const char *folder, long k, int error) {
    snprintf(root, sizeof root, "%s", folder);
    if (!count) count = mmap(0, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    first = k; failure = error;
    if (root[0]) *count = 0;
}
long disk_count(void) { return *count; }

static int below(const char *path) { return root[0] && !strncmp(path, root, strlen(root)); }

/* Is this write one that fails? With it, all later ones do. */
static int fails(int counted) {
    if (!counted) return 0;
    long now = __atomic_fetch_add(count, 1, __ATOMIC_SEQ_CST);
    if (first < 0 || now < first) return 0;
    errno = failure;
    return 1;
}
static int of_file(int fd) {
    if (!root[0]) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
static int of_path(int at, const char *path) {
    if (!root[0] || !path) return 0;
    char folder[PATH_MAX], real[PATH_MAX];
    if (path[0] != '/' && at != AT_FDCWD) return of_file(at);
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash) strcpy(folder, "."); else if (slash == folder) folder[1] = 0; else *slash = 0;
    return realpath(folder, real) && below(real);
}

#define NEXT(type, name) static type (*next)(); if (!next) next = (type (*)())dlsym(RTLD_NEXT, name)

/* Of a write that fails first, half arrives, as on a disk that fills up. */
#define WRITE(name, tail, call_tail)                                           \
    ssize_t name(int fd, const void *data, size_t n tail) {                    \
        NEXT(ssize_t, #name);                                                  \
        if (fails(of_file(fd))) {                                              \
            if (failure == ENOSPC && *count == first + 1 && n > 1) return next(fd, data, n / 2 call_tail); \
            return -1;                                                         \
        }                                                                      \
        return next(fd, data, n call_tail);                                    \
    }
#define COMMA ,
WRITE(write, , )
WRITE(pwrite, COMMA off_t at, COMMA at)
WRITE(pwrite64, COMMA off_t at, COMMA at)

ssize_t writev(int fd, const struct iovec *v, int n) {
    NEXT(ssize_t, "writev");
    return fails(of_file(fd)) ? -1 : next(fd, v, n);
}
#define ON_FILE(name)                                                          \
    int name(int fd) { NEXT(int, #name); return fails(of_file(fd)) ? -1 : next(fd); }
ON_FILE(fsync)
ON_FILE(fdatasync)
#define CUT(name)                                                              \
    int name(int fd, off_t n) { NEXT(int, #name); return fails(of_file(fd)) ? -1 : next(fd, n); }
CUT(ftruncate)
CUT(ftruncate64)

static int makes(int at, const char *path, int flags) {
    if (!of_path(at, path)) return 0;
    if (flags & O_TRUNC) return 1;
    if (failure == EROFS || first < 0) return (flags & (O_CREAT | O_WRONLY | O_RDWR)) != 0;
    return (flags & O_CREAT) != 0;
}
#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...) {                               \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        NEXT(int, #name);                                                      \
        return fails(makes(AT_FDCWD, path, flags)) ? -1 : next(path, flags, mode); \
    }
#define OPENAT(name)                                                           \
    int name(int at, const char *path, int flags, ...) {                       \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        NEXT(int, #name);                                                      \
        return fails(makes(at, path, flags)) ? -1 : next(at, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) {
    NEXT(int, "mkdir");
    return fails(of_path(AT_FDCWD, path)) ? -1 : next(path, mode);
}
int rename(const char *from, const char *to) {
    NEXT(int, "rename");
    return fails(of_path(AT_FDCWD, to)) ? -1 : next(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    NEXT(int, "renameat");
    return fails(of_path(b, to)) ? -1 : next(a, from, b, to);
}
int link(const char *from, const char *to) {
    NEXT(int, "link");
    return fails(of_path(AT_FDCWD, to)) ? -1 : next(from, to);
}
/* A full disk lets go of files; a read-only one does not. */
int unlink(const char *path) {
    NEXT(int, "unlink");
    return failure == EROFS && fails(of_path(AT_FDCWD, path)) ? -1 : next(path);
}
int unlinkat(int at, const char *path, int flags) {
    NEXT(int, "unlinkat");
    return failure == EROFS && fails(of_path(at, path)) ? -1 : next(at, path, flags);
}
