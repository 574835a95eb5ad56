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
#define RIG_VERSION 2u
#define RIG_GPUS_MAX 8192u /* an agent farm keeps a block of 64 racks of 72 in one file, and some room */
#define RIG_NONE UINT32_MAX /* "no such limit": 0 would read as a limit of nothing */
#define RIG_BLOCK_READS 1u
#define RIG_BLOCK_WRITES 2u
#define RIG_GPU_SCOPE_READS 1u /* bits of power_scopes: what this board lets its driver do */
#define RIG_GPU_SCOPE_WRITES 2u
#define RIG_MODULE_SCOPE 4u
#define RIG_NO_CLOCK_INFO 1u /* bits of unsupported_calls */
#define RIG_NO_REASONS 2u
#define RIG_NO_CLOCK_LOCK 4u
#define RIG_NO_CLOCK_LIST 8u
#define RIG_PRESETS 5
#define RIG_PRESET_PARAMETERS 4
#define RIG_MIG_INSTANCES_MAX 7u /* and fewer than a record has bytes: see `mig_handle` */

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
    rig_u32 locked_clock_max_mhz; /* RIG_NONE: not locked. No call of NVML reads a lock back */
    rig_u32 persistence_mode;
    rig_u32 mig_mode;
    /* faults, 0 is none */
    rig_u32 forced_error;       /* nvmlReturn of every call: 15 is a lost GPU */
    rig_u32 write_error;        /* nvmlReturn of every setter: 4 is no permission */
    rig_u32 ignores_writes;     /* setters say success and change nothing, which the getters show */
    rig_u32 blocked;            /* RIG_BLOCK_*: calls do not return while set */
    rig_u32 call_delay_us;      /* every call takes this long */
    rig_u32 unsupported_fields; /* bit n: field 185 + n is answered NOT_SUPPORTED */
    rig_u32 unsupported_calls;  /* RIG_NO_*: calls answered NOT_SUPPORTED */
    rig_u32 inert;              /* limit and clock lock are kept and shown, and do not act: the plant must look */
    rig_u32 foreign_mw;         /* another writer puts this limit back after every one of ours; RIG_NONE: none */
    rig_u32 power_scopes;       /* RIG_*_SCOPE*; the limits above are those of the scope that is allowed */
    /* what was asked of this GPU */
    rig_u64 write_count;   /* limits really written */
    rig_u64 last_write_ns; /* CLOCK_MONOTONIC */
    rig_u64 refused_count; /* setters answered with an error */
    rig_u64 clock_write_count;
    rig_u64 last_clock_write_ns;
    rig_u64 energy_base_mj;     /* energy_mj when the driver was loaded: NVML counts from there */
    rig_u64 profiles_supported; /* workload power profiles, bit n is profile n; 0: no such feature */
    rig_u64 profiles_requested;
    /* what the board is */
    rig_u32 clock_min_mhz;
    rig_u32 clock_max_mhz;
    rig_u32 clock_step_mhz;
    rig_u32 mig_instances;
    /* power smoothing */
    rig_u32 smoothing_supported;
    rig_u32 smoothing_enabled;
    rig_u32 smoothing_privilege; /* 0: the BMC lets nobody in the host see or change it */
    rig_u32 smoothing_immediate; /* ramp-down without hysteresis and ramp */
    rig_u32 smoothing_ceiling_w; /* TMP: total module power, of which floors are a share */
    rig_u32 smoothing_lifetime_percent;
    rig_u32 smoothing_preset; /* active */
    rig_u32 smoothing_reserved;
    /* per preset, then the administrator's override (RIG_NONE: not set):
     * floor in 1/100 %, ramp up and ramp down in mW/s, hysteresis in ms */
    rig_u32 presets[RIG_PRESETS + 1][RIG_PRESET_PARAMETERS];
    /* where the board sits; no chassis serial: it does not know */
    rig_u32 slot;
    rig_u32 tray;
    rig_u32 host_id;
    rig_u32 module_id;
    char chassis_serial[16];
    char uuid[48];
    char name[88];
    rig_u32 module_gpus; /* so many in a row have the limits of the first one, and draw together; 0: each its own */
    rig_u32 refresh_us[3]; /* fields 185, 186, 191 are renewed, and stamped, at whole multiples of it; 0: stamped when
                              they are asked for */
    char reserved[8];
} rig_gpu;

static_assert(sizeof(rig_header) == 128, "header layout");
static_assert(sizeof(rig_gpu) == 512, "record layout");

#endif
