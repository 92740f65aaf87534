/* A disk that is full from the n-th write below a folder on, for LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static long first, count;

void fill_disk(const char *path, long n) {
  snprintf(folder, sizeof folder, "%s", path);
  first = n;
  count = 0;
}

static int is_full(const char *path) {
  if (!first || strncmp(path, folder, strlen(folder))) return 0;
  if (__sync_add_and_fetch(&count, 1) < first) return 0;
  errno = ENOSPC;
  return 1;
}

static int is_full_for(int file) {
  char link[64], path[4096];
  if (!first) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = 0;
  return is_full(path);
}

#define CALL(type, name, full, parameters, arguments)      \
  type name parameters {                                   \
    static type(*real) parameters;                         \
    if (!real) real = dlsym(RTLD_NEXT, #name);             \
    return full ? -1 : real arguments;                     \
  }
CALL(ssize_t, write, is_full_for(f), (int f, const void *b, size_t n), (f, b, n))
CALL(ssize_t, pwrite, is_full_for(f), (int f, const void *b, size_t n, off_t o), (f, b, n, o))
CALL(ssize_t, pwrite64, is_full_for(f), (int f, const void *b, size_t n, off_t o), (f, b, n, o))
CALL(ssize_t, writev, is_full_for(f), (int f, const struct iovec *v, int n), (f, v, n))
CALL(int, mkdir, is_full(p), (const char *p, mode_t m), (p, m))
