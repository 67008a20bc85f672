/* Preloaded into a process: the k-th of its calls on a path below $FAULT_BELOW fails, or is its last.

   FAULT_COUNT  a file of eight bytes that counts the calls, of all processes that have it
   FAULT_CALL   which calls count, such as ",write,fsync,"; all where it is not set
   FAULT_AT     k, from 1; with FAULT_ON set every later call fails too
   FAULT_ERRNO  what it fails with; 0: the process is killed (SIGKILL) in its place
   FAULT_LOG    a file that gets one line for each call that counts

   The environment is read at each call, so a process that was forked after loading it can have its own. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/file.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
    const char *below = getenv("FAULT_BELOW"), *which = getenv("FAULT_CALL"), *count = getenv("FAULT_COUNT");
    char word[32], line[4200];
    if (!below || !count || !path || strncmp(path, below, strlen(below))) return 0;
    snprintf(word, sizeof word, ",%s,", call);
    if (which && !strstr(which, word)) return 0;
    int saved = errno, file = syscall(SYS_openat, AT_FDCWD, count, O_RDWR);
    if (file < 0) return errno = saved, 0;
    long *shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (shared == MAP_FAILED) return errno = saved, 0;
    long k = __sync_add_and_fetch(shared, 1), at = getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0;
    munmap(shared, sizeof *shared);
    if (getenv("FAULT_LOG") && (file = syscall(SYS_openat, AT_FDCWD, getenv("FAULT_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0644)) >= 0) {
        syscall(SYS_write, file, line, snprintf(line, sizeof line, "%ld %s %s\n", k, call, path));
        syscall(SYS_close, file);
    }
    errno = saved;
    if (!at || k < at || (k > at && !getenv("FAULT_ON"))) return 0;
    int code = getenv("FAULT_ERRNO") ? atoi(getenv("FAULT_ERRNO")) : 0;
    if (!code) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

static const char *name(int file) {
    static __thread char path[4096], link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    path[n < 0 ? 0 : n] = 0;
    return path;
}

#define REAL(function) ((__typeof__(&function))dlsym(RTLD_NEXT, #function))
#define CALL(type, function, call, path, parameters, ...) \
    type function parameters { return fails(call, path) ? -1 : REAL(function)(__VA_ARGS__); }
#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return fails(flags & O_CREAT ? "create" : "open", path) ? -1 : REAL(function)(path, flags, mode); }

OPEN(open)
OPEN(open64)
CALL(ssize_t, read, "read", name(f), (int f, void *b, size_t n), f, b, n)
CALL(ssize_t, write, "write", name(f), (int f, const void *b, size_t n), f, b, n)
CALL(ssize_t, pwrite64, "write", name(f), (int f, const void *b, size_t n, off_t o), f, b, n, o)
CALL(int, fsync, "fsync", name(f), (int f), f)
CALL(int, fdatasync, "fsync", name(f), (int f), f)
CALL(int, ftruncate, "ftruncate", name(f), (int f, off_t n), f, n)
CALL(int, ftruncate64, "ftruncate", name(f), (int f, off_t n), f, n)
CALL(int, flock, "flock", name(f), (int f, int how), f, how)
CALL(int, rename, "rename", to, (const char *from, const char *to), from, to)
CALL(int, unlink, "unlink", path, (const char *path), path)
CALL(int, rmdir, "rmdir", path, (const char *path), path)
DIR *opendir(const char *path) { return fails("opendir", path) ? NULL : REAL(opendir)(path); }
int close(int f) {  /* as on NFS: it is closed, and what was written to it is lost */
    int failed = fails("close", name(f)), why = errno, code = REAL(close)(f);
    return failed ? errno = why, -1 : code; }
CALL(int, mkdir, "mkdir", path, (const char *path, mode_t mode), path, mode)
