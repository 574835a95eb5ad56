/* Layout of the memory that GPU firmware, plant and driver library share: one header, then one record per GPU.
 *
 * The plant writes powers, clocks and temperatures and reads the requested limits; the library does the
 * opposite; a test or a rig scenario writes the fault fields. Every field is naturally aligned and 32 or 64
 * bits wide, so each load and store is one machine instruction: no lock, and no torn value on either side.
 * `firmware_sim/gpu_firmware.py` describes the same bytes to NumPy; version and sizes are checked at start.
 */
#ifndef POWERBLOCK_RIG_GPUS_H
#define POWERBLOCK_RIG_GPUS_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#define RIG_MAGIC 0x31555047474952ULL /* "RIGGPU1", little-endian */
#define RIG_VERSION 1u
#define RIG_GPUS_MAX 1024u /* a whole block of 72-GPU racks never shares one driver */
#define RIG_NONE UINT32_MAX /* "no such limit": 0 would read as a limit of nothing */
#define RIG_BLOCK_READS 1u
#define RIG_BLOCK_WRITES 2u

typedef _Atomic uint32_t rig_u32;
typedef _Atomic uint64_t rig_u64;

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes;
    uint32_t record_bytes;
    uint32_t gpu_count;
    rig_u32 driver_error; /* nvmlReturn of every init and call: 9 is an unloaded driver; 0 is none */
    rig_u32 serialised;   /* 1: calls queue behind one lock, as they do behind the real driver's */
    char driver_version[32];
    char reserved[64];
} rig_header;

typedef struct {
    /* measured, written by the plant */
    rig_u64 energy_mj;
    rig_u64 clock_reasons;
    rig_u32 instant_mw;
    rig_u32 average_mw; /* over 1 s */
    rig_u32 clock_mhz;
    rig_u32 memory_clock_mhz;
    rig_u32 temperature_c;
    /* limits: requested is written by the driver's users, the rest by board and plant */
    rig_u32 requested_mw;
    rig_u32 oob_limit_mw; /* set by the BMC; RIG_NONE: none. The lower of the two is enforced */
    rig_u32 min_mw;
    rig_u32 max_mw;
    rig_u32 default_mw;
    rig_u32 locked_clock_min_mhz;
    rig_u32 locked_clock_max_mhz; /* RIG_NONE: not locked */
    rig_u32 persistence_mode;
    rig_u32 mig_mode;
    /* faults, 0 is none */
    rig_u32 forced_error;       /* nvmlReturn of every call: 15 is a lost GPU */
    rig_u32 write_error;        /* nvmlReturn of every setter: 4 is no permission */
    rig_u32 ignores_writes;     /* setters say success and change nothing */
    rig_u32 blocked;            /* RIG_BLOCK_*: calls do not return while set */
    rig_u32 call_delay_us;      /* every call takes this long */
    rig_u32 unsupported_fields; /* bit n: field 185 + n is answered NOT_SUPPORTED */
    /* what was asked of this GPU */
    rig_u64 write_count;   /* limits really written */
    rig_u64 last_write_ns; /* CLOCK_MONOTONIC */
    rig_u64 refused_count; /* setters answered with an error */
    char uuid[48];
    char name[88];
} rig_gpu;

static_assert(sizeof(rig_header) == 128, "header layout");
static_assert(sizeof(rig_gpu) == 256, "record layout");

#endif
