/* Faults at the boundary between a program and libc, below one directory.
 *
 * Loaded with LD_PRELOAD. Every call on a file at or below BBCACHE_FAULT_DIR, by path
 * or by a descriptor opened there, is numbered from 1 in the order of the beginnings,
 * by all threads together. One of them, or several in a row, can be made to fail, to
 * transfer fewer bytes than asked for, or to be the last thing that the process does.
 *
 *   BBCACHE_FAULT_DIR    absolute path of the directory; without it nothing is done
 *   BBCACHE_FAULT_LOG    file that every call is appended to; see struct record
 *   BBCACHE_FAULT_KIND   error | short-one | short-half | kill-before | kill-after
 *   BBCACHE_FAULT_ERRNO  number of the error
 *   BBCACHE_FAULT_ONLY   names of calls, by commas, that alone are counted for AT
 *   BBCACHE_FAULT_AT     which call meets the fault first, counted from 1
 *   BBCACHE_FAULT_COUNT  how many in a row meet it: 1 unless given, 0 for all
 *
 * They are read when the library is loaded and by bbcache_fault_arm(), which also
 * starts the numbers again, for a child that was forked from a warm parent. Calls of a
 * thread between bbcache_fault_outside(1) and (0) are recorded with number 0 and never
 * fail: they are what somebody else does to the directory. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 65536
#define LOWEST_LOG_FD 200 /* out of the way of the descriptors that a test counts */

struct record {      /* then path, path2 and data, without terminators */
  uint32_t size;     /* of the record, this field and the variable part included */
  uint32_t sequence; /* order in which the calls began, those from outside included */
  uint32_t number;   /* as above; 0 for a call from outside */
  int32_t error;     /* errno; 0 for success */
  int64_t result;
  int64_t offset; /* of pread and pwrite; flags of open; length of ftruncate */
  int32_t fd;     /* -1 for a call on a path */
  int32_t thread;
  uint16_t injected; /* 1 for a call that met the fault */
  uint16_t path_size;
  uint16_t path2_size; /* of where a rename goes */
  uint16_t unused;
  uint32_t data_size; /* bytes that a write has written */
  char op[12];
};

enum kind { NONE, FAIL, SHORT_ONE, SHORT_HALF, KILL_BEFORE, KILL_AFTER };
static const char *const kind_names[] = {"none",       "error",       "short-one",
                                         "short-half", "kill-before", "kill-after"};

struct call {
  struct record record;
  char path[PATH_MAX], path2[PATH_MAX];
  const void *data;
  bool is_ours; /* at or below the directory */
  bool fails, is_short, is_last;
  int errno_before;
};

static char dir[PATH_MAX], only[256];
static enum kind kind;
static long fault_errno, fault_at, fault_count;
static int log_fd = -1;
static atomic_uint last_sequence, last_number, last_match, hits;
static __thread int is_outside;
/* Never freed: another thread may be reading the name of a descriptor being closed. */
static char *_Atomic paths[MAX_FDS];

static void give_up(const char *what) {
  dprintf(2, "shim: %s\n", what);
  abort();
}

static void *find_real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) give_up(name);
  return found;
}

#define REAL(name)                                             \
  ({                                                           \
    static __typeof__(&name) real;                             \
    if (!real) real = (__typeof__(&name))find_real(#name);     \
    real;                                                      \
  })

/* ---- settings ---- */

static long number_of(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static void copy_setting(const char *name, char *to, size_t size) {
  const char *text = getenv(name);
  if ((size_t)snprintf(to, size, "%s", text ? text : "") >= size) give_up(name);
}

static void open_log(void) {
  char path[PATH_MAX];
  if (log_fd >= 0) REAL(close)(log_fd);
  log_fd = -1;
  copy_setting("BBCACHE_FAULT_LOG", path, sizeof path);
  if (!*path) return;
  int fd = REAL(open64)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  log_fd = REAL(fcntl64)(fd, F_DUPFD_CLOEXEC, LOWEST_LOG_FD);
  if (log_fd < 0) give_up(path);
  REAL(close)(fd);
}

void bbcache_fault_arm(void) {
  char name[32];
  copy_setting("BBCACHE_FAULT_DIR", dir, sizeof dir);
  copy_setting("BBCACHE_FAULT_ONLY", only, sizeof only);
  copy_setting("BBCACHE_FAULT_KIND", name, sizeof name);
  for (kind = KILL_AFTER; kind != NONE && strcmp(name, kind_names[kind]); kind--) continue;
  fault_errno = number_of("BBCACHE_FAULT_ERRNO", EIO);
  fault_at = number_of("BBCACHE_FAULT_AT", 1);
  fault_count = number_of("BBCACHE_FAULT_COUNT", 1);
  last_sequence = last_number = last_match = hits = 0;
  open_log();
}

void bbcache_fault_outside(int on) { is_outside = on; }

int bbcache_fault_hits(void) { return hits; }

__attribute__((constructor)) static void load(void) { bbcache_fault_arm(); }

/* ---- names of files and descriptors ---- */

static bool is_below(const char *path) {
  size_t size = strlen(dir);
  return size && !strncmp(path, dir, size) && (path[size] == '/' || !path[size]);
}

static const char *path_of(int fd) { return fd >= 0 && fd < MAX_FDS ? paths[fd] : NULL; }

static void track(int fd, const char *path) {
  if (fd >= MAX_FDS) give_up("descriptor too high");
  if (fd >= 0) paths[fd] = path ? strdup(path) : NULL;
}

/* Make `path`, relative to the directory open as `at`, absolute. */
static void resolve(int at, const char *path, char out[PATH_MAX]) {
  char base[PATH_MAX] = "", link[64];
  int fd;
  if (sscanf(path, "/proc/self/fd/%d", &fd) == 1 && path_of(fd)) path = path_of(fd);
  if (path[0] != '/') {
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    if (readlink(link, base, sizeof base - 1) < 0) base[0] = 0;
  }
  const char *slash = *path && path[0] != '/' ? "/" : "";
  if (snprintf(out, PATH_MAX, "%s%s%s", base, slash, path) >= PATH_MAX) out[0] = 0;
}

/* ---- one call: begin_..., the real one unless it fails, finish ---- */

static void append_record(struct call *call) {
  struct record *r = &call->record;
  r->path_size = strlen(call->path);
  r->path2_size = strlen(call->path2);
  r->size = sizeof *r + r->path_size + r->path2_size + r->data_size;
  struct iovec parts[] = {{r, sizeof *r},
                          {call->path, r->path_size},
                          {call->path2, r->path2_size},
                          {(void *)call->data, r->data_size}};
  if (log_fd >= 0 && REAL(writev)(log_fd, parts, 4) != (ssize_t)r->size) give_up("log is full");
}

static bool is_counted(const char *op) {
  char wanted[32], list[sizeof only + 2];
  snprintf(wanted, sizeof wanted, ",%s,", op);
  snprintf(list, sizeof list, ",%s,", only);
  return !*only || strstr(list, wanted);
}

static void meet_fault(struct call *call) {
  struct record *r = &call->record;
  unsigned match = ++last_match;
  if (match < fault_at || (fault_count && match >= fault_at + fault_count)) return;
  hits++;
  call->fails = kind == FAIL;
  call->is_short = kind == SHORT_ONE || kind == SHORT_HALF;
  call->is_last = kind == KILL_AFTER;
  r->injected = !call->is_short;
  if (kind == KILL_BEFORE) {
    r->result = -1;
    r->error = EINTR; /* it has not happened */
    append_record(call);
    raise(SIGKILL);
  }
}

static void begin(struct call *call, const char *op, int fd) {
  struct record *r = &call->record;
  call->is_ours = true;
  call->errno_before = errno;
  snprintf(r->op, sizeof r->op, "%s", op);
  r->fd = fd;
  r->thread = syscall(SYS_gettid);
  r->sequence = ++last_sequence;
  if (is_outside) return;
  r->number = ++last_number;
  if (kind != NONE && is_counted(op)) meet_fault(call);
}

static void clear(struct call *call) {
  memset(&call->record, 0, sizeof call->record);
  call->path[0] = call->path2[0] = 0;
  call->data = NULL;
  call->is_ours = call->fails = call->is_short = call->is_last = false;
}

static void begin_at(struct call *call, const char *op, int at, const char *path) {
  clear(call);
  if (!*dir || !path) return;
  resolve(at, path, call->path);
  if (is_below(call->path)) begin(call, op, -1);
}

static void begin_on(struct call *call, const char *op, int fd) {
  clear(call);
  const char *path = *dir ? path_of(fd) : NULL;
  if (!path) return;
  snprintf(call->path, sizeof call->path, "%s", path);
  begin(call, op, fd);
}

static void begin_two(struct call *call, const char *op, int at, const char *from, int to_at,
                      const char *to) {
  clear(call);
  if (!*dir) return;
  resolve(at, from, call->path);
  resolve(to_at, to, call->path2);
  if (is_below(call->path) || is_below(call->path2)) begin(call, op, -1);
}

/* How many of `size` bytes the call may transfer. */
static size_t allowed(struct call *call, size_t size) {
  if (!call->is_short || size < 2) return size;
  call->record.injected = 1;
  return kind == SHORT_ONE ? 1 : size / 2;
}

static void wrote(struct call *call, const void *data, int64_t size) {
  call->data = data;
  call->record.data_size = size > 0 ? size : 0;
}

static int64_t finish(struct call *call, int64_t result) {
  struct record *r = &call->record;
  if (!call->is_ours) return result;
  r->error = call->fails ? fault_errno : result < 0 ? errno : 0;
  r->result = result;
  append_record(call);
  if (call->is_last) raise(SIGKILL);
  errno = r->error ? r->error : call->errno_before;
  return result;
}

#include "shim_calls.h"
