/* A Modbus device on libmodbus that does what it is told, and what it must not.
 *
 *     fault_server tcp               a gateway with units 1..247; prints "ready PORT"
 *     fault_server rtu TTY UNIT      one unit on a serial line of 19200 8E1; prints "ready 0"
 *
 * Holding and input registers 0..199 of unit u begin as u * 200 + address, so a value says where it came from.
 * Each request prints "UNIT FUNCTION ADDRESS COUNT-OR-VALUE". Commands on stdin, one per line:
 *
 *     fault UNIT NAME ARGUMENT       see `enum fault`; "none" ends it; a fault with ARGUMENT n < 0 is served once
 *     set UNIT ADDRESS VALUE         a register
 *     hang                           close nothing and read nothing of the present connections ever again
 */

#include <errno.h>
#include <modbus.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

enum { UNITS = 248, REGISTERS = 200, BACKLOG = 64, LINE_MAX_BYTES = 256 };
enum fault { NONE, SILENT, LATE, FUNCTION, COUNT, UNIT, GARBAGE, EXCEPTION, TWICE, SPLIT, NOISE, PREFIX, CLOSE };
static const char *const names[] = { "none", "silent", "late", "function", "count", "unit", "garbage",
                                     "exception", "twice", "split", "noise", "prefix", "close" };

static modbus_t *ctx;
static modbus_mapping_t *maps[UNITS];
static struct { enum fault kind; int argument; } faults[UNITS];
static int rtu;

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, modbus_strerror(errno));
    exit(1);
}

static size_t sealed(uint8_t *frame, size_t size) {
    uint16_t crc = 0xffff;
    for (size_t i = 0; i < size; i++) {
        crc ^= frame[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xa001 : crc >> 1;
    }
    frame[size] = crc & 0xff;
    frame[size + 1] = crc >> 8;
    return size + 2;
}

/* The whole frame that carries `pdu` as the answer of `unit` to `query`. */
static size_t framed(uint8_t *frame, const uint8_t *query, int unit, const uint8_t *pdu, size_t size) {
    if (rtu) {
        frame[0] = unit;
        memcpy(frame + 1, pdu, size);
        return sealed(frame, size + 1);
    }
    memcpy(frame, query, 4);
    frame[4] = (size + 1) >> 8;
    frame[5] = (size + 1) & 0xff;
    frame[6] = unit;
    memcpy(frame + 7, pdu, size);
    return size + 7;
}

static void put(const uint8_t *bytes, size_t size) {
    if (write(modbus_get_socket(ctx), bytes, size) < 0 && errno != EPIPE) perror("write");
}

/* The right answer to a read of registers, or one of another function or with more registers than asked for. */
static size_t read_pdu(uint8_t *pdu, int unit, int function, int address, int count) {
    if (count > MODBUS_MAX_READ_REGISTERS) count = 0; /* the value of a write */
    pdu[0] = function;
    pdu[1] = 2 * count;
    for (int i = 0; i < count; i++) {
        uint16_t value = maps[unit]->tab_registers[(address + i) % REGISTERS];
        pdu[2 + 2 * i] = value >> 8;
        pdu[3 + 2 * i] = value & 0xff;
    }
    return 2 + 2 * count;
}

static void misbehave(const uint8_t *query, int size, int unit, int function, int address, int count) {
    uint8_t pdu[300], frame[320];
    int argument = abs(faults[unit].argument);
    enum fault kind = faults[unit].kind;
    if (faults[unit].argument < 0) faults[unit].kind = NONE;
    size_t length = framed(frame, query, unit, pdu, read_pdu(pdu, unit, function, address, count));
    switch (kind) {
    case NONE: modbus_reply(ctx, query, size, maps[unit]); break;
    case SILENT: break;
    case LATE: usleep(1000 * argument); modbus_reply(ctx, query, size, maps[unit]); break;
    case FUNCTION: put(frame, framed(frame, query, unit, pdu, read_pdu(pdu, unit, argument, address, count))); break;
    case COUNT: put(frame, framed(frame, query, unit, pdu, read_pdu(pdu, unit, function, address, argument))); break;
    case UNIT: put(frame, framed(frame, query, argument, pdu, read_pdu(pdu, unit, function, address, count))); break;
    case GARBAGE: put((const uint8_t *)"\x16\x99garbage, not a frame at all", 28); break;
    case EXCEPTION: modbus_reply_exception(ctx, query, argument); break;
    case TWICE: put(frame, length); usleep(1000 * argument); put(frame, length); break;
    case SPLIT: put(frame, length / 2); usleep(1000 * argument); put(frame + length / 2, length - length / 2); break;
    case NOISE: frame[length - 3] ^= 0x10; put(frame, length); break;
    case PREFIX: put((const uint8_t *)"\0\xff", 2); put(frame, length); break;
    case CLOSE: shutdown(modbus_get_socket(ctx), SHUT_RDWR); break;
    }
}

static void serve(const uint8_t *query, int size) {
    const uint8_t *pdu = query + modbus_get_header_length(ctx);
    int unit = pdu[-1], function = pdu[0], address = pdu[1] << 8 | pdu[2], number = pdu[3] << 8 | pdu[4];
    printf("%d %d %d %d\n", unit, function, address, number);
    if (unit >= UNITS || maps[unit] == NULL) return;
    misbehave(query, size, unit, function, address, number);
}

static void obey(char *line, fd_set *clients, int listener) {
    int unit, first, second;
    char name[32];
    if (sscanf(line, "fault %d %31s %d", &unit, name, &first) == 3) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (!strcmp(name, names[i])) {
                faults[unit].kind = i;
                faults[unit].argument = first;
            }
    } else if (sscanf(line, "set %d %d %d", &unit, &first, &second) == 3) {
        maps[unit]->tab_registers[first] = maps[unit]->tab_input_registers[first] = second;
    } else if (!strncmp(line, "hang", 4)) {
        for (int fd = 0; fd < FD_SETSIZE; fd++)
            if (fd != listener && fd != STDIN_FILENO) FD_CLR(fd, clients);
    }
    puts("done");
}

static void run(int listener) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    char line[LINE_MAX_BYTES];
    fd_set watched;
    FD_ZERO(&watched);
    FD_SET(STDIN_FILENO, &watched);
    FD_SET(listener, &watched);
    for (;;) {
        fd_set ready = watched;
        if (select(FD_SETSIZE, &ready, NULL, NULL, NULL) < 0) fail("select");
        if (FD_ISSET(STDIN_FILENO, &ready)) {
            if (fgets(line, sizeof line, stdin) == NULL) return;
            obey(line, &watched, listener);
            continue;
        }
        for (int fd = 0; fd < FD_SETSIZE; fd++) {
            if (!FD_ISSET(fd, &ready) || fd == STDIN_FILENO) continue;
            if (fd == listener && !rtu) {
                int client = accept(listener, NULL, NULL);
                if (client >= 0 && client < FD_SETSIZE) FD_SET(client, &watched);
                continue;
            }
            modbus_set_socket(ctx, fd);
            int size = modbus_receive(ctx, query);
            if (size > 0) {
                serve(query, size);
            } else if (size < 0 && !rtu) {
                FD_CLR(fd, &watched);
                close(fd);
            }
        }
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0); /* or select would not see what stdio has read already */
    rtu = argc == 4 && !strcmp(argv[1], "rtu");
    int only = rtu ? atoi(argv[3]) : 0;
    for (int unit = 1; unit < UNITS; unit++) {
        if (only && unit != only) continue;
        maps[unit] = modbus_mapping_new(REGISTERS, REGISTERS, REGISTERS, REGISTERS);
        if (maps[unit] == NULL) fail("mapping");
        for (int i = 0; i < REGISTERS; i++)
            maps[unit]->tab_registers[i] = maps[unit]->tab_input_registers[i] = unit * 200 + i;
    }
    if (rtu) {
        ctx = modbus_new_rtu(argv[2], 19200, 'E', 8, 1);
        if (ctx == NULL || modbus_set_slave(ctx, only) || modbus_connect(ctx)) fail("serial line");
        printf("ready 0\n");
        run(modbus_get_socket(ctx));
    } else {
        ctx = modbus_new_tcp("127.0.0.1", 0);
        int listener = ctx ? modbus_tcp_listen(ctx, BACKLOG) : -1;
        if (listener < 0) fail("listen");
        struct sockaddr_in address;
        socklen_t length = sizeof address;
        getsockname(listener, (struct sockaddr *)&address, &length);
        printf("ready %d\n", ntohs(address.sin_port));
        run(listener);
    }
    return 0;
}
