/* A farm of Modbus TCP devices on loopback: one thread, one epoll, nothing computed before it is asked for.
 *
 *     farm DEVICES CHANGE_MS   prints "EPOCH_NS PORT PORT ...", one line, then serves until killed
 *
 * Each device listens on a port of its own and has 60 registers, read by function 3 or 4:
 *
 *     0      version: how often the device has changed since its epoch. It changes every CHANGE_MS, at moments
 *            that anybody with this machine's monotonic clock can compute: epoch - phase + version * CHANGE_MS,
 *            where phase = device * CHANGE_MS / DEVICES spreads the devices evenly
 *     1      serial: how many reads this device has answered, this one included
 *     2..59  a number made of serial, register and device, so that each value differs from the one before it,
 *            and one that was mixed up, torn or made of another read is seen to be wrong
 *
 * So whoever receives the values knows when they changed, which reads never reached him, and whether they are
 * right. Requests that come in one segment are all answered, in order. Anything but such a read is an exception.
 */

#define _GNU_SOURCE /* accept4 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { REGISTERS = 60, REQUEST = 12, HEADER = 7, EVENTS_MAX = 64, BUFFER_MAX = 64 * REQUEST };
enum { ILLEGAL_FUNCTION = 1, ILLEGAL_ADDRESS = 2 };

struct device { uint16_t number, serial; int64_t phase_ns; };
struct line { int fd; int listens; size_t filled; struct device *device; uint8_t bytes[BUFFER_MAX]; };

static int64_t epoch_ns, change_ns;

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void put16(uint8_t *at, uint16_t value) {
    at[0] = value >> 8;
    at[1] = value & 0xff;
}

static uint16_t get16(const uint8_t *at) { return at[0] << 8 | at[1]; }

static uint16_t value_of(const struct device *device, uint16_t version, unsigned at) {
    if (at == 0) return version;
    if (at == 1) return device->serial;
    return device->serial * 31 + at * 7 + device->number;
}

/* Writes the answer to one request; its length. */
static size_t answer(struct device *device, const uint8_t *request, uint8_t *reply) {
    uint8_t function = request[HEADER];
    unsigned first = get16(request + 8), count = get16(request + 10);
    int is_read = function == 3 || function == 4;
    memcpy(reply, request, HEADER);
    if (!is_read || count < 1 || first + count > REGISTERS) {
        put16(reply + 4, 3);
        reply[7] = function | 0x80;
        reply[8] = is_read ? ILLEGAL_ADDRESS : ILLEGAL_FUNCTION;
        return HEADER + 2;
    }
    device->serial++;
    uint16_t version = (uint16_t)((now_ns() - epoch_ns + device->phase_ns) / change_ns);
    put16(reply + 4, 3 + 2 * count);
    reply[7] = function;
    reply[8] = 2 * count;
    for (unsigned i = 0; i < count; i++) put16(reply + 9 + 2 * i, value_of(device, version, first + i));
    return HEADER + 2 + 2 * count;
}

/* Answers every whole request that has come; 0 when the line is to be closed. */
static int serve(struct line *line) {
    static uint8_t replies[BUFFER_MAX / REQUEST * (HEADER + 2 + 2 * REGISTERS)];
    ssize_t came = recv(line->fd, line->bytes + line->filled, BUFFER_MAX - line->filled, 0);
    if (came < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
    if (came <= 0) return 0;
    line->filled += came;
    size_t used = 0, length = 0;
    while (line->filled - used >= REQUEST) {
        if (get16(line->bytes + used + 4) != REQUEST - 6) return 0; /* no request of this length is served here */
        length += answer(line->device, line->bytes + used, replies + length);
        used += REQUEST;
    }
    memmove(line->bytes, line->bytes + used, line->filled -= used);
    return length == 0 || send(line->fd, replies, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static void watch(int poll, struct line *line) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = line};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, line->fd, &event) < 0) fail("epoll_ctl");
}

static struct line *line_of(int fd, int listens, struct device *device) {
    struct line *line = calloc(1, sizeof *line);
    if (line == NULL) fail("calloc");
    line->fd = fd;
    line->listens = listens;
    line->device = device;
    return line;
}

static void take_caller(int poll, const struct line *listener) {
    int one = 1, fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return; /* gone again */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    watch(poll, line_of(fd, 0, listener->device));
}

/* A listening socket on a free port of loopback; the port. */
static int open_device(int poll, struct device *device) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 16) < 0) fail("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    watch(poll, line_of(fd, 1, device));
    return ntohs(address.sin_port);
}

int main(int argc, char **argv) {
    int devices = argc == 3 ? atoi(argv[1]) : 0;
    change_ns = argc == 3 ? atoll(argv[2]) * 1000000LL : 0;
    if (devices < 1 || change_ns < 1) {
        fprintf(stderr, "usage: farm DEVICES CHANGE_MS\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max; /* a listener and a caller or two per device */
    setrlimit(RLIMIT_NOFILE, &files);

    int poll = epoll_create1(0);
    if (poll < 0) fail("epoll_create1");
    epoch_ns = now_ns();
    printf("%lld", (long long)epoch_ns);
    struct device *all = calloc(devices, sizeof *all);
    if (all == NULL) fail("calloc");
    for (int i = 0; i < devices; i++) {
        all[i].number = i;
        all[i].phase_ns = i * change_ns / devices;
        printf(" %d", open_device(poll, &all[i]));
    }
    printf("\n");
    fflush(stdout);

    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(poll, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++) {
            struct line *line = events[i].data.ptr;
            if (line->listens) {
                take_caller(poll, line);
            } else if (!serve(line)) {
                close(line->fd);
                free(line);
            }
        }
    }
}
