/* The calls that shim.c intercepts; a part of it.
 *
 * All of a program's calls on files, in every spelling that libc has for them: with
 * offsets of 64 bits, fortified, relative to a directory. */

/* A call whose only effect is the real one. */
#define SIMPLE(type, name, op, begin_call, arguments, ...)           \
  type name arguments {                                              \
    struct call call;                                                \
    begin_call;                                                      \
    return finish(&call, call.fails ? -1 : REAL(name)(__VA_ARGS__)); \
  }
#define ON_PATH(name, op, at, arguments, ...) \
  SIMPLE(int, name, op, begin_at(&call, op, at, path), arguments, __VA_ARGS__)
#define ON_FD(type, name, op, arguments, ...) \
  SIMPLE(type, name, op, begin_on(&call, op, fd), arguments, __VA_ARGS__)

static int finish_open(struct call *call, int flags, int fd) {
  call->record.offset = flags;
  if (fd >= 0) track(fd, call->is_ours ? call->path : NULL);
  return finish(call, fd);
}

static mode_t mode_of(int flags, va_list rest) {
  return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name, at, call_real, ...)                                  \
  int name(__VA_ARGS__, ...) {                                          \
    struct call call;                                                   \
    va_list rest;                                                       \
    va_start(rest, flags);                                              \
    mode_t mode = mode_of(flags, rest);                                 \
    va_end(rest);                                                       \
    begin_at(&call, "open", at, path);                                  \
    return finish_open(&call, flags, call.fails ? -1 : call_real);      \
  }
OPEN(open, AT_FDCWD, REAL(open)(path, flags, mode), const char *path, int flags)
OPEN(open64, AT_FDCWD, REAL(open64)(path, flags, mode), const char *path, int flags)
OPEN(openat, at, REAL(openat)(at, path, flags, mode), int at, const char *path, int flags)
OPEN(openat64, at, REAL(openat64)(at, path, flags, mode), int at, const char *path, int flags)
/* What a fortified caller calls where it gives no mode. */
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int at, const char *path, int flags) { return openat(at, path, flags); }
int __openat64_2(int at, const char *path, int flags) { return openat64(at, path, flags); }
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* The kernel frees the descriptor even where close fails. */
int close(int fd) {
  struct call call;
  begin_on(&call, "close", fd);
  if (call.is_ours) track(fd, NULL);
  int result = REAL(close)(fd);
  return finish(&call, call.fails ? -1 : result);
}

static int finish_dup(struct call *call, int fd) {
  if (fd >= 0) track(fd, call->is_ours ? call->path : NULL);
  return finish(call, fd);
}

#define DUP(name, arguments, ...)                                         \
  int name arguments {                                                    \
    struct call call;                                                     \
    begin_on(&call, "dup", fd);                                           \
    return finish_dup(&call, call.fails ? -1 : REAL(name)(__VA_ARGS__));  \
  }
DUP(dup, (int fd), fd)
DUP(dup2, (int fd, int to), fd, to)
DUP(dup3, (int fd, int to, int flags), fd, to, flags)

#define FCNTL(name)                                                             \
  int name(int fd, int command, ...) {                                          \
    struct call call;                                                           \
    va_list rest;                                                               \
    va_start(rest, command);                                                    \
    void *argument = va_arg(rest, void *);                                      \
    va_end(rest);                                                               \
    bool is_dup = command == F_DUPFD || command == F_DUPFD_CLOEXEC;             \
    begin_on(&call, is_dup ? "dup" : "fcntl", fd);                              \
    int result = call.fails ? -1 : REAL(name)(fd, command, argument);           \
    return is_dup ? finish_dup(&call, result) : finish(&call, result);          \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

int ioctl(int fd, unsigned long request, ...) {
  struct call call;
  va_list rest;
  va_start(rest, request);
  void *argument = va_arg(rest, void *);
  va_end(rest);
  begin_on(&call, "ioctl", fd);
  return finish(&call, call.fails ? -1 : REAL(ioctl)(fd, request, argument));
}

int isatty(int fd) {
  struct call call;
  begin_on(&call, "ioctl", fd);
  return finish(&call, call.fails ? -1 : REAL(isatty)(fd)) > 0;
}

#define READ(name, op, at, arguments, ...)                              \
  ssize_t name arguments {                                              \
    struct call call;                                                   \
    begin_on(&call, op, fd);                                            \
    call.record.offset = at;                                            \
    size = allowed(&call, size);                                        \
    return finish(&call, call.fails ? -1 : REAL(name)(__VA_ARGS__));    \
  }
READ(read, "read", 0, (int fd, void *data, size_t size), fd, data, size)
READ(pread, "pread", at, (int fd, void *data, size_t size, off_t at), fd, data, size, at)
READ(pread64, "pread", at, (int fd, void *data, size_t size, off64_t at), fd, data, size, at)
ssize_t __read_chk(int fd, void *data, size_t size, size_t room) {
  return size > room ? -1 : read(fd, data, size);
}
ssize_t __pread_chk(int fd, void *data, size_t size, off_t at, size_t room) {
  return size > room ? -1 : pread(fd, data, size, at);
}
ssize_t __pread64_chk(int fd, void *data, size_t size, off64_t at, size_t room) {
  return size > room ? -1 : pread64(fd, data, size, at);
}

#define WRITE(name, op, at, arguments, ...)                               \
  ssize_t name arguments {                                                \
    struct call call;                                                     \
    begin_on(&call, op, fd);                                              \
    call.record.offset = at;                                              \
    size = allowed(&call, size);                                          \
    ssize_t result = call.fails ? -1 : REAL(name)(__VA_ARGS__);           \
    wrote(&call, data, result);                                           \
    return finish(&call, result);                                         \
  }
WRITE(write, "write", 0, (int fd, const void *data, size_t size), fd, data, size)
WRITE(pwrite, "pwrite", at, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
WRITE(pwrite64, "pwrite", at, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)

#define FTRUNCATE(name, type)                                           \
  int name(int fd, type size) {                                         \
    struct call call;                                                   \
    begin_on(&call, "ftruncate", fd);                                   \
    call.record.offset = size;                                          \
    return finish(&call, call.fails ? -1 : REAL(name)(fd, size));       \
  }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

ON_FD(int, fsync, "fsync", (int fd), fd)
ON_FD(int, fdatasync, "fsync", (int fd), fd)
ON_FD(int, flock, "flock", (int fd, int what), fd, what)
ON_FD(int, fchmod, "chmod", (int fd, mode_t mode), fd, mode)
ON_FD(off_t, lseek, "lseek", (int fd, off_t to, int from), fd, to, from)
ON_FD(off64_t, lseek64, "lseek", (int fd, off64_t to, int from), fd, to, from)
ON_FD(int, fstat, "stat", (int fd, struct stat *into), fd, into)
ON_FD(int, fstat64, "stat", (int fd, struct stat64 *into), fd, into)
ON_PATH(stat, "stat", AT_FDCWD, (const char *path, struct stat *into), path, into)
ON_PATH(stat64, "stat", AT_FDCWD, (const char *path, struct stat64 *into), path, into)
ON_PATH(lstat, "stat", AT_FDCWD, (const char *path, struct stat *into), path, into)
ON_PATH(lstat64, "stat", AT_FDCWD, (const char *path, struct stat64 *into), path, into)
ON_PATH(fstatat, "stat", at, (int at, const char *path, struct stat *into, int flags), at, path, into, flags)
ON_PATH(fstatat64, "stat", at, (int at, const char *path, struct stat64 *into, int flags), at, path, into, flags)
ON_PATH(statx, "stat", at, (int at, const char *path, int flags, unsigned mask, struct statx *into), at, path, flags, mask, into)
ON_PATH(statvfs, "statvfs", AT_FDCWD, (const char *path, struct statvfs *into), path, into)
ON_PATH(statvfs64, "statvfs", AT_FDCWD, (const char *path, struct statvfs64 *into), path, into)
ON_PATH(access, "access", AT_FDCWD, (const char *path, int mode), path, mode)
ON_PATH(faccessat, "access", at, (int at, const char *path, int mode, int flags), at, path, mode, flags)
ON_PATH(chmod, "chmod", AT_FDCWD, (const char *path, mode_t mode), path, mode)
ON_PATH(unlink, "unlink", AT_FDCWD, (const char *path), path)
ON_PATH(unlinkat, "unlink", at, (int at, const char *path, int flags), at, path, flags)
ON_PATH(rmdir, "rmdir", AT_FDCWD, (const char *path), path)
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), path, mode)
ON_PATH(mkdirat, "mkdir", at, (int at, const char *path, mode_t mode), at, path, mode)
ON_PATH(truncate, "truncate", AT_FDCWD, (const char *path, off_t size), path, size)
ON_PATH(truncate64, "truncate", AT_FDCWD, (const char *path, off64_t size), path, size)
SIMPLE(int, rename, "rename", begin_two(&call, "rename", AT_FDCWD, path, AT_FDCWD, to), (const char *path, const char *to), path, to)
SIMPLE(int, renameat, "rename", begin_two(&call, "rename", at, path, to_at, to), (int at, const char *path, int to_at, const char *to), at, path, to_at, to)
SIMPLE(int, link, "link", begin_two(&call, "link", AT_FDCWD, path, AT_FDCWD, to), (const char *path, const char *to), path, to)

/* ---- directories: glibc opens and closes their descriptors without the calls above ---- */

DIR *opendir(const char *path) {
  struct call call;
  begin_at(&call, "opendir", AT_FDCWD, path);
  DIR *found = call.fails ? NULL : REAL(opendir)(path);
  if (found) track(dirfd(found), call.is_ours ? call.path : NULL);
  finish(&call, found ? dirfd(found) : -1);
  return found;
}

DIR *fdopendir(int fd) {
  struct call call;
  begin_on(&call, "opendir", fd);
  DIR *found = call.fails ? NULL : REAL(fdopendir)(fd);
  finish(&call, found ? fd : -1);
  return found;
}

/* The end of a directory is no failure, though NULL as well. */
#define READDIR(name, type)                                        \
  struct type *name(DIR *directory) {                              \
    struct call call;                                              \
    begin_on(&call, "readdir", dirfd(directory));                  \
    struct type *item = call.fails ? NULL : REAL(name)(directory); \
    finish(&call, call.fails ? -1 : item != NULL);                 \
    return item;                                                   \
  }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

int closedir(DIR *directory) {
  struct call call;
  int fd = dirfd(directory);
  begin_on(&call, "closedir", fd);
  if (call.is_ours) track(fd, NULL);
  int result = REAL(closedir)(directory);
  return finish(&call, call.fails ? -1 : result);
}
