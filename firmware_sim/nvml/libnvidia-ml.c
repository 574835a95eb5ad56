/* A driver library for GPUs that are not there: the calls of NVML that a power agent makes.
 *
 * Loaded by the unmodified nvidia-ml-py in place of NVIDIA's libnvidia-ml.so.1, found by LD_LIBRARY_PATH.
 * It holds no state and no physics: every getter reads, every setter writes the shared memory named by
 * POWERBLOCK_RIG_GPUS (see rig_gpus.h), where a plant model moves the numbers and a scenario injects faults.
 * Signatures, codes, structures with their versions, and units (mW, mJ, MHz) are those of nvml.h. A device handle
 * is a pointer to its record; the handle of MIG instance i points 1 + i bytes into it. There is no call here that
 * reads a clock lock back, or one that sets persistence mode: the first does not exist, the second nobody may use.
 *
 * A mapping is never unmapped: a call that is blocked in another thread still holds a pointer into it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "rig_gpus.h"

typedef enum {
    OK = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
} nvml_return;

typedef struct {
    uint32_t field_id;
    uint32_t scope_id;
    int64_t timestamp_us;
    int64_t latency_us;
    uint32_t value_type;
    uint32_t result;
    union {
        double f64;
        uint32_t u32;
        uint64_t u64;
    } value;
} nvml_field_value;

enum { TYPE_DOUBLE = 0, TYPE_UINT = 1, TYPE_ULONG_LONG = 3 };
enum { FIELD_FIRST = 185, FIELD_ENERGY = 191, FIELD_LAST = 192 };
enum { SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEMORY = 2 };
enum { BLOCKED_POLL_NS = 1000000 };
enum { UUID_BYTES_MIN = 41 }; /* "GPU-" and 36 characters and the end */

static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t driver_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned init_count;
static rig_header *_Atomic rig;

static rig_gpu *records(rig_header *header) { return (rig_gpu *)((char *)header + header->header_bytes); }

/* ---- the memory ---- */

static nvml_return check_header(const rig_header *header, size_t bytes) {
    if (bytes < sizeof *header || header->magic != RIG_MAGIC || header->version != RIG_VERSION ||
        header->header_bytes != sizeof *header || header->record_bytes != sizeof(rig_gpu) ||
        header->gpu_count > RIG_GPUS_MAX || bytes < sizeof *header + header->gpu_count * sizeof(rig_gpu))
        return LIB_RM_VERSION_MISMATCH; /* the code a real library gives to a driver of another build */
    return OK;
}

static nvml_return map_rig(rig_header **mapped) {
    const char *path = getenv("POWERBLOCK_RIG_GPUS");
    struct stat stat_of;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return DRIVER_NOT_LOADED;
    if (fstat(fd, &stat_of) != 0 || stat_of.st_size < (off_t)sizeof(rig_header)) {
        close(fd);
        return LIB_RM_VERSION_MISMATCH;
    }
    size_t bytes = (size_t)stat_of.st_size;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED)
        return DRIVER_NOT_LOADED;
    nvml_return result = check_header(memory, bytes);
    if (result == OK)
        result = ((rig_header *)memory)->driver_error;
    if (result != OK)
        munmap(memory, bytes);
    else
        *mapped = memory;
    return result;
}

nvml_return nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    nvml_return result = OK;
    pthread_mutex_lock(&init_lock);
    if (init_count == 0) {
        rig_header *mapped = NULL;
        result = map_rig(&mapped);
        if (result == OK)
            rig = mapped;
    }
    if (result == OK)
        init_count++;
    pthread_mutex_unlock(&init_lock);
    return result;
}

nvml_return nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvml_return nvmlShutdown(void) {
    pthread_mutex_lock(&init_lock);
    nvml_return result = init_count ? OK : UNINITIALIZED;
    if (init_count && --init_count == 0)
        rig = NULL;
    pthread_mutex_unlock(&init_lock);
    return result;
}

/* ---- what every call to a GPU passes first ---- */

static void sleep_ns(long ns) {
    struct timespec left = {ns / 1000000000L, ns % 1000000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {
    }
}

static void wait_as_told(rig_gpu *gpu, uint32_t kind) {
    uint32_t delay_us = gpu->call_delay_us;
    if (delay_us)
        sleep_ns((long)delay_us * 1000L);
    while (gpu->blocked & kind)
        sleep_ns(BLOCKED_POLL_NS);
}

static uintptr_t offset_of(const void *handle) {
    return ((uintptr_t)handle - (uintptr_t)records(rig)) % sizeof(rig_gpu);
}

static int is_mig(const void *handle) { return offset_of(handle) != 0; }

static nvml_return enter(rig_gpu *gpu, uint32_t kind) {
    rig_header *header = rig;
    if (header == NULL)
        return UNINITIALIZED;
    if (gpu < records(header) || gpu >= records(header) + header->gpu_count || is_mig(gpu))
        return INVALID_ARGUMENT; /* power and clocks belong to the whole GPU, never to an instance */
    int serialised = header->serialised != 0;
    if (serialised)
        pthread_mutex_lock(&driver_lock);
    wait_as_told(gpu, kind);
    if (serialised)
        pthread_mutex_unlock(&driver_lock);
    if (header->driver_error)
        return header->driver_error;
    return gpu->forced_error;
}

#define ENTER(gpu, kind)                          \
    do {                                          \
        nvml_return entered = enter((gpu), kind); \
        if (entered != OK)                        \
            return entered;                       \
    } while (0)

static nvml_return copy_text(char *to, unsigned length, const char *from) {
    size_t needed = strlen(from) + 1;
    if (to == NULL)
        return INVALID_ARGUMENT;
    if (needed > length)
        return INSUFFICIENT_SIZE;
    memcpy(to, from, needed);
    return OK;
}

/* ---- system ---- */

const char *nvmlErrorString(nvml_return result) {
    switch (result) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    }
    return "Unknown Error";
}

nvml_return nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return rig ? copy_text(version, length, rig->driver_version) : UNINITIALIZED;
}

nvml_return nvmlSystemGetNVMLVersion(char *version, unsigned length) { return copy_text(version, length, "13.0"); }

nvml_return nvmlDeviceGetCount_v2(unsigned *count) {
    if (rig == NULL)
        return UNINITIALIZED;
    *count = rig->gpu_count;
    return OK;
}

nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned index, rig_gpu **gpu) {
    if (rig == NULL)
        return UNINITIALIZED;
    if (index >= rig->gpu_count)
        return INVALID_ARGUMENT;
    *gpu = records(rig) + index;
    return enter(*gpu, RIG_BLOCK_READS);
}

/* Of MIG instances: that of their GPU, with the instance instead of the first two digits. */
enum { MIG_UUID_BYTES = 48, UUID_DIGITS_AT = 6 };

static void mig_uuid(char *to, const rig_gpu *gpu, unsigned instance) {
    snprintf(to, MIG_UUID_BYTES, "MIG-%02x%.34s", instance & 0xffu, gpu->uuid + UUID_DIGITS_AT);
}

static rig_gpu *mig_handle(rig_gpu *gpu, unsigned instance) {
    return (rig_gpu *)((char *)gpu + 1 + instance % RIG_MIG_INSTANCES_MAX);
}

nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, rig_gpu **gpu) {
    if (rig == NULL)
        return UNINITIALIZED;
    for (unsigned index = 0; index < rig->gpu_count; index++) {
        rig_gpu *found = records(rig) + index;
        if (strncmp(found->uuid, uuid, sizeof found->uuid) == 0) {
            *gpu = found;
            return enter(found, RIG_BLOCK_READS);
        }
        for (unsigned instance = 0; instance < found->mig_instances; instance++) {
            char own[MIG_UUID_BYTES];
            mig_uuid(own, found, instance);
            if (strcmp(own, uuid) == 0) {
                *gpu = mig_handle(found, instance);
                return enter(found, RIG_BLOCK_READS);
            }
        }
    }
    return NOT_FOUND;
}

nvml_return nvmlDeviceIsMigDeviceHandle(rig_gpu *gpu, unsigned *is) {
    if (rig == NULL)
        return UNINITIALIZED;
    *is = (unsigned)is_mig(gpu);
    return OK;
}

nvml_return nvmlDeviceGetDeviceHandleFromMigDeviceHandle(rig_gpu *gpu, rig_gpu **parent) {
    if (rig == NULL)
        return UNINITIALIZED;
    *parent = (rig_gpu *)((char *)gpu - offset_of(gpu));
    return is_mig(gpu) ? enter(*parent, RIG_BLOCK_READS) : INVALID_ARGUMENT;
}

nvml_return nvmlDeviceGetMigDeviceHandleByIndex(rig_gpu *gpu, unsigned instance, rig_gpu **handle) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (instance >= gpu->mig_instances)
        return NOT_FOUND;
    *handle = mig_handle(gpu, instance);
    return OK;
}

/* ---- identity ---- */

nvml_return nvmlDeviceGetIndex(rig_gpu *gpu, unsigned *index) {
    ENTER(gpu, RIG_BLOCK_READS);
    *index = (unsigned)(gpu - records(rig));
    return OK;
}

nvml_return nvmlDeviceGetUUID(rig_gpu *gpu, char *uuid, unsigned length) {
    if (rig != NULL && is_mig(gpu)) {
        char own[MIG_UUID_BYTES];
        rig_gpu *parent = (rig_gpu *)((char *)gpu - offset_of(gpu));
        ENTER(parent, RIG_BLOCK_READS);
        mig_uuid(own, parent, (unsigned)offset_of(gpu) - 1);
        return copy_text(uuid, length, own);
    }
    ENTER(gpu, RIG_BLOCK_READS);
    return length < UUID_BYTES_MIN ? INSUFFICIENT_SIZE : copy_text(uuid, length, gpu->uuid);
}

nvml_return nvmlDeviceGetName(rig_gpu *gpu, char *name, unsigned length) {
    ENTER(gpu, RIG_BLOCK_READS);
    return copy_text(name, length, gpu->name);
}

/* ---- measured ---- */

/* Of the GPUs of one module the first, which has its limits. */
static rig_gpu *first_of_module(rig_gpu *gpu) {
    uintptr_t sharing = gpu->module_gpus ? gpu->module_gpus : 1;
    return gpu - (uintptr_t)(gpu - records(rig)) % sharing;
}

static uint64_t sum_of_module(rig_gpu *gpu, uint64_t (*value)(rig_gpu *)) {
    rig_gpu *one = first_of_module(gpu), *end = records(rig) + rig->gpu_count;
    uint64_t sum = value(one);
    for (unsigned i = 1; i < gpu->module_gpus && one + i < end; i++)
        sum += value(one + i);
    return sum;
}

static uint64_t average_mw(rig_gpu *gpu) { return gpu->average_mw; }
static uint64_t instant_mw(rig_gpu *gpu) { return gpu->instant_mw; }

static uint32_t enforced_mw(rig_gpu *gpu) {
    uint32_t requested_mw = gpu->requested_mw, oob_limit_mw = gpu->oob_limit_mw;
    return requested_mw < oob_limit_mw ? requested_mw : oob_limit_mw;
}

static uint64_t energy_mj(rig_gpu *gpu) {
    uint64_t now_mj = gpu->energy_mj, base_mj = gpu->energy_base_mj;
    return now_mj > base_mj ? now_mj - base_mj : 0;
}

static nvml_return needs(rig_gpu *gpu, uint32_t scope_bit) {
    return gpu->power_scopes & scope_bit ? OK : NOT_SUPPORTED;
}

static nvml_return allows(rig_gpu *gpu, uint32_t missing_bit) {
    return gpu->unsupported_calls & missing_bit ? NOT_SUPPORTED : OK;
}

#define GETTER(name, type, expression, condition) \
    nvml_return name(rig_gpu *gpu, type *value) { \
        ENTER(gpu, RIG_BLOCK_READS);              \
        nvml_return able = (condition);           \
        if (able == OK)                           \
            *value = (expression);                \
        return able;                              \
    }

GETTER(nvmlDeviceGetPowerUsage, unsigned, gpu->average_mw, OK)
GETTER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, energy_mj(gpu), OK)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->requested_mw, needs(gpu, RIG_GPU_SCOPE_READS))
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->default_mw, needs(gpu, RIG_GPU_SCOPE_READS))
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, enforced_mw(gpu), needs(gpu, RIG_GPU_SCOPE_READS))
GETTER(nvmlDeviceGetPersistenceMode, unsigned, gpu->persistence_mode, OK)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->clock_reasons, allows(gpu, RIG_NO_REASONS))
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->clock_reasons,
       allows(gpu, RIG_NO_REASONS))
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned, RIG_MIG_INSTANCES_MAX, OK)

nvml_return nvmlDeviceGetPowerManagementLimitConstraints(rig_gpu *gpu, unsigned *min_mw, unsigned *max_mw) {
    ENTER(gpu, RIG_BLOCK_READS);
    *min_mw = gpu->min_mw;
    *max_mw = gpu->max_mw;
    return needs(gpu, RIG_GPU_SCOPE_READS);
}

nvml_return nvmlDeviceGetMigMode(rig_gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu, RIG_BLOCK_READS);
    *current = *pending = gpu->mig_mode;
    return OK;
}

nvml_return nvmlDeviceGetClockInfo(rig_gpu *gpu, unsigned clock, unsigned *mhz) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (clock > CLOCK_MEMORY)
        return NOT_SUPPORTED;
    *mhz = clock == CLOCK_MEMORY ? gpu->memory_clock_mhz : gpu->clock_mhz;
    return allows(gpu, RIG_NO_CLOCK_INFO);
}

nvml_return nvmlDeviceGetMaxClockInfo(rig_gpu *gpu, unsigned clock, unsigned *mhz) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (clock > CLOCK_MEMORY)
        return NOT_SUPPORTED;
    *mhz = clock == CLOCK_MEMORY ? gpu->memory_clock_mhz : gpu->clock_max_mhz;
    return allows(gpu, RIG_NO_CLOCK_LIST);
}

nvml_return nvmlDeviceGetMaxCustomerBoostClock(rig_gpu *gpu, unsigned clock, unsigned *mhz) {
    return nvmlDeviceGetMaxClockInfo(gpu, clock, mhz);
}

nvml_return nvmlDeviceGetSupportedMemoryClocks(rig_gpu *gpu, unsigned *count, unsigned *mhz) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (allows(gpu, RIG_NO_CLOCK_LIST) != OK)
        return NOT_SUPPORTED;
    unsigned room = *count;
    *count = 1;
    if (room < 1 || mhz == NULL)
        return INSUFFICIENT_SIZE;
    mhz[0] = gpu->memory_clock_mhz;
    return OK;
}

/* From the highest down, as the real one lists them. */
nvml_return nvmlDeviceGetSupportedGraphicsClocks(rig_gpu *gpu, unsigned memory_mhz, unsigned *count, unsigned *mhz) {
    ENTER(gpu, RIG_BLOCK_READS);
    unsigned low = gpu->clock_min_mhz, high = gpu->clock_max_mhz, step = gpu->clock_step_mhz, room = *count;
    if (allows(gpu, RIG_NO_CLOCK_LIST) != OK)
        return NOT_SUPPORTED;
    if (memory_mhz != gpu->memory_clock_mhz || step == 0 || low > high)
        return NOT_FOUND;
    *count = (high - low) / step + 1;
    if (room < *count || mhz == NULL)
        return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        mhz[i] = high - i * step;
    return OK;
}

nvml_return nvmlDeviceGetTemperature(rig_gpu *gpu, unsigned sensor, unsigned *celsius) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (sensor != 0)
        return INVALID_ARGUMENT;
    *celsius = gpu->temperature_c;
    return OK;
}

static nvml_return power_field(rig_gpu *gpu, nvml_field_value *field) {
    uint32_t scope_bit = field->scope_id == SCOPE_GPU ? RIG_GPU_SCOPE_READS : RIG_MODULE_SCOPE;
    int of_power = field->field_id <= FIELD_FIRST + 1 || field->field_id == FIELD_ENERGY;
    if (field->scope_id > SCOPE_MODULE || gpu->unsupported_fields & (1u << (field->field_id - FIELD_FIRST)))
        return NOT_SUPPORTED;
    if (!(of_power && field->scope_id == SCOPE_GPU) && needs(gpu, scope_bit) != OK)
        return NOT_SUPPORTED;
    int of_module = field->scope_id == SCOPE_MODULE;
    rig_gpu *board = of_module ? first_of_module(gpu) : gpu;
    const uint32_t in_order_mw[] = {
        of_module ? (uint32_t)sum_of_module(gpu, average_mw) : gpu->average_mw,
        of_module ? (uint32_t)sum_of_module(gpu, instant_mw) : gpu->instant_mw,
        board->min_mw, board->max_mw, board->default_mw, enforced_mw(board), 0, board->requested_mw,
    };
    field->value_type = field->field_id == FIELD_ENERGY ? TYPE_ULONG_LONG : TYPE_UINT;
    if (field->field_id == FIELD_ENERGY)
        field->value.u64 = of_module ? sum_of_module(gpu, energy_mj) : energy_mj(gpu);
    else
        field->value.u32 = in_order_mw[field->field_id - FIELD_FIRST];
    return OK;
}

/* Power smoothing: numbers relative to ..._ENABLED, which is 251, and was 256 in drivers of the R575 branch. */
enum { SMOOTHING_FIRST = 251, SMOOTHING_FIRST_R575 = 256, R575 = 575 };
enum {
    ENABLED, PRIVILEGE, IMMEDIATE, CEILING, FLOOR, FLOOR_MAX, FLOOR_MIN, LIFETIME, PRESET_COUNT,
    PROFILE_FLOOR, PROFILE_RAMP_UP, PROFILE_RAMP_DOWN, PROFILE_HYSTERESIS, ACTIVE_PRESET,
    OVERRIDE_FLOOR, OVERRIDE_RAMP_UP, OVERRIDE_RAMP_DOWN, OVERRIDE_HYSTERESIS, SMOOTHING_FIELDS
};
#define PERCENT 100.0 /* floors are kept in 1/100 % */

static uint32_t smoothing_first(void) {
    return atoi(rig->driver_version) == R575 ? SMOOTHING_FIRST_R575 : SMOOTHING_FIRST;
}

/* A parameter that is in force: the administrator's override, else the active preset's. */
static uint32_t in_force(rig_gpu *gpu, unsigned parameter) {
    uint32_t overridden = gpu->presets[RIG_PRESETS][parameter];
    return overridden != RIG_NONE ? overridden : gpu->presets[gpu->smoothing_preset % RIG_PRESETS][parameter];
}

static nvml_return preset_field(rig_gpu *gpu, unsigned preset, unsigned parameter, nvml_field_value *field) {
    if (preset > RIG_PRESETS)
        return INVALID_ARGUMENT;
    uint32_t kept = gpu->presets[preset][parameter];
    field->value.u64 = 0;
    field->value_type = parameter == 0 && kept != RIG_NONE ? TYPE_DOUBLE : TYPE_UINT;
    if (field->value_type == TYPE_DOUBLE)
        field->value.f64 = kept / PERCENT;
    else
        field->value.u32 = kept;
    return OK;
}

static nvml_return smoothing_field(rig_gpu *gpu, unsigned number, nvml_field_value *field) {
    if (!gpu->smoothing_supported)
        return NOT_SUPPORTED;
    if (gpu->smoothing_privilege == 0)
        return NO_PERMISSION;
    if (number >= PROFILE_FLOOR && number <= PROFILE_HYSTERESIS)
        return field->scope_id < RIG_PRESETS ? preset_field(gpu, field->scope_id, number - PROFILE_FLOOR, field)
                                             : INVALID_ARGUMENT;
    if (number >= OVERRIDE_FLOOR && number <= OVERRIDE_HYSTERESIS)
        return preset_field(gpu, RIG_PRESETS, number - OVERRIDE_FLOOR, field);
    uint32_t ceiling_w = gpu->smoothing_ceiling_w;
    const uint32_t values[SMOOTHING_FIELDS] = {
        [ENABLED] = gpu->smoothing_enabled,
        [PRIVILEGE] = gpu->smoothing_privilege,
        [IMMEDIATE] = gpu->smoothing_immediate,
        [CEILING] = ceiling_w,
        [FLOOR] = gpu->smoothing_enabled ? (uint32_t)(ceiling_w * in_force(gpu, 0) / (100 * PERCENT)) : 0,
        [FLOOR_MAX] = 90,
        [FLOOR_MIN] = 0,
        [LIFETIME] = gpu->smoothing_lifetime_percent,
        [PRESET_COUNT] = RIG_PRESETS,
        [ACTIVE_PRESET] = gpu->smoothing_preset,
    };
    field->value_type = TYPE_UINT;
    field->value.u64 = 0;
    field->value.u32 = values[number];
    return OK;
}

static nvml_return field_value(rig_gpu *gpu, nvml_field_value *field) {
    uint32_t smoothing = field->field_id - smoothing_first();
    if (field->field_id >= FIELD_FIRST && field->field_id <= FIELD_LAST)
        return power_field(gpu, field);
    return smoothing < SMOOTHING_FIELDS ? smoothing_field(gpu, smoothing, field) : NOT_SUPPORTED;
}

/* When the value was renewed last, as far as the board tells. */
static int64_t renewed_us(rig_gpu *gpu, uint32_t field_id, int64_t now_us) {
    int is_power = field_id == FIELD_FIRST || field_id == FIELD_FIRST + 1;
    int sensor = is_power ? (int)(field_id - FIELD_FIRST) : 2;
    int64_t refresh_us = is_power || field_id == FIELD_ENERGY ? gpu->refresh_us[sensor] : 0;
    return refresh_us ? now_us - now_us % refresh_us : now_us;
}

nvml_return nvmlDeviceGetFieldValues(rig_gpu *gpu, int count, nvml_field_value *fields) {
    struct timespec now;
    ENTER(gpu, RIG_BLOCK_READS);
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        fields[i].timestamp_us = renewed_us(gpu, fields[i].field_id, now.tv_sec * 1000000LL + now.tv_nsec / 1000);
        fields[i].latency_us = 0;
        fields[i].result = field_value(gpu, &fields[i]);
    }
    return OK;
}

/* ---- commanded ---- */

static nvml_return refuse(rig_gpu *gpu, nvml_return result) {
    gpu->refused_count++;
    return result;
}

static nvml_return enter_setter(rig_gpu *gpu) {
    ENTER(gpu, RIG_BLOCK_WRITES);
    return gpu->write_error ? refuse(gpu, gpu->write_error) : OK;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

static nvml_return set_limit(rig_gpu *gpu, uint32_t scope_bit, unsigned limit_mw) {
    nvml_return result = enter_setter(gpu);
    if (result != OK)
        return result;
    if (needs(gpu, scope_bit) != OK)
        return refuse(gpu, NOT_SUPPORTED);
    rig_gpu *board = scope_bit == RIG_MODULE_SCOPE ? first_of_module(gpu) : gpu;
    if (limit_mw < board->min_mw || limit_mw > board->max_mw)
        return refuse(gpu, INVALID_ARGUMENT);
    if (gpu->ignores_writes)
        return OK;
    uint32_t foreign_mw = board->foreign_mw;
    board->requested_mw = foreign_mw == RIG_NONE ? limit_mw : foreign_mw;
    gpu->last_write_ns = now_ns();
    gpu->write_count++; /* last: who sees the count sees the write */
    return OK;
}

nvml_return nvmlDeviceSetPowerManagementLimit(rig_gpu *gpu, unsigned limit_mw) {
    return set_limit(gpu, RIG_GPU_SCOPE_WRITES, limit_mw);
}

#define STRUCT_VERSION(type, number) ((uint32_t)(sizeof(type) | ((number) << 24)))

typedef struct {
    uint32_t version;
    uint32_t scope; /* one byte in nvml.h, followed by three of padding */
    uint32_t power_mw;
} nvml_power_value_v2;

nvml_return nvmlDeviceSetPowerManagementLimit_v2(rig_gpu *gpu, nvml_power_value_v2 *value) {
    if (value->version != STRUCT_VERSION(nvml_power_value_v2, 2))
        return ARGUMENT_VERSION_MISMATCH;
    uint32_t scope = value->scope & 0xffu;
    if (scope > SCOPE_MODULE)
        return NOT_SUPPORTED;
    return set_limit(gpu, scope == SCOPE_MODULE ? RIG_MODULE_SCOPE : RIG_GPU_SCOPE_WRITES, value->power_mw);
}

/* ---- clocks ---- */

enum { CLOCK_LIMIT_FIRST = 0xffffff00u, CLOCK_UNLIMITED = 0xffffff02u };

static nvml_return lock_clocks(rig_gpu *gpu, uint32_t min_mhz, uint32_t max_mhz) {
    nvml_return result = enter_setter(gpu);
    if (result != OK)
        return result;
    if (allows(gpu, RIG_NO_CLOCK_LOCK) != OK)
        return refuse(gpu, NOT_SUPPORTED);
    if (min_mhz > max_mhz)
        return refuse(gpu, INVALID_ARGUMENT);
    if (gpu->ignores_writes)
        return OK;
    gpu->locked_clock_min_mhz = min_mhz;
    gpu->locked_clock_max_mhz = max_mhz;
    gpu->last_clock_write_ns = now_ns();
    gpu->clock_write_count++;
    return OK;
}

nvml_return nvmlDeviceResetGpuLockedClocks(rig_gpu *gpu) { return lock_clocks(gpu, 0, RIG_NONE); }

nvml_return nvmlDeviceSetGpuLockedClocks(rig_gpu *gpu, unsigned min_mhz, unsigned max_mhz) {
    if (min_mhz == CLOCK_UNLIMITED && max_mhz == CLOCK_UNLIMITED)
        return nvmlDeviceResetGpuLockedClocks(gpu);
    if (min_mhz >= CLOCK_LIMIT_FIRST || max_mhz >= CLOCK_LIMIT_FIRST)
        return INVALID_ARGUMENT;
    return lock_clocks(gpu, min_mhz, max_mhz);
}

/* ---- place in the rack ---- */

typedef struct {
    uint32_t version;
    uint8_t ib_guid[16];
    uint8_t chassis_serial[16];
    uint8_t slot, tray, host_id, peer_type, module_id;
} nvml_platform_v2;

nvml_return nvmlDeviceGetPlatformInfo(rig_gpu *gpu, nvml_platform_v2 *platform) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (platform->version != STRUCT_VERSION(nvml_platform_v2, 2))
        return ARGUMENT_VERSION_MISMATCH;
    if (gpu->chassis_serial[0] == 0)
        return NOT_SUPPORTED;
    memset(platform->ib_guid, 0, sizeof platform->ib_guid);
    memcpy(platform->chassis_serial, gpu->chassis_serial, sizeof platform->chassis_serial);
    platform->slot = (uint8_t)gpu->slot;
    platform->tray = (uint8_t)gpu->tray;
    platform->host_id = (uint8_t)gpu->host_id;
    platform->peer_type = 1; /* a switch is present */
    platform->module_id = (uint8_t)gpu->module_id;
    return OK;
}

/* ---- workload power profiles ---- */

enum { MASK_WORDS = 8, PROFILES_MAX = 255 };
typedef struct { uint32_t words[MASK_WORDS]; } nvml_mask;
typedef struct { uint32_t version, profile, priority; nvml_mask conflicting; } nvml_profile;
typedef struct { uint32_t version; nvml_mask supported; nvml_profile profiles[PROFILES_MAX]; } nvml_profiles;
typedef struct { uint32_t version; nvml_mask supported, requested, enforced; } nvml_current_profiles;
typedef struct { uint32_t version; nvml_mask requested; } nvml_requested_profiles;

static nvml_mask as_mask(uint64_t bits) { return (nvml_mask){{(uint32_t)bits, (uint32_t)(bits >> 32)}}; }

static nvml_return as_bits(const nvml_mask *mask, uint64_t supported, uint64_t *bits) {
    uint32_t beyond = 0;
    for (int word = 2; word < MASK_WORDS; word++)
        beyond |= mask->words[word];
    *bits = mask->words[0] | (uint64_t)mask->words[1] << 32;
    return beyond || *bits & ~supported ? INVALID_ARGUMENT : OK;
}

static nvml_return enter_profiles(rig_gpu *gpu, uint32_t version, uint32_t expected) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (version != expected)
        return ARGUMENT_VERSION_MISMATCH;
    return gpu->profiles_supported ? OK : NOT_SUPPORTED;
}

nvml_return nvmlDeviceWorkloadPowerProfileGetProfilesInfo(rig_gpu *gpu, nvml_profiles *told) {
    nvml_return result = enter_profiles(gpu, told->version, STRUCT_VERSION(nvml_profiles, 1));
    if (result != OK)
        return result;
    told->supported = as_mask(gpu->profiles_supported);
    for (uint32_t i = 0; i < PROFILES_MAX; i++)
        told->profiles[i] = (nvml_profile){.version = STRUCT_VERSION(nvml_profile, 1), .profile = i};
    return OK;
}

nvml_return nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(rig_gpu *gpu, nvml_current_profiles *current) {
    nvml_return result = enter_profiles(gpu, current->version, STRUCT_VERSION(nvml_current_profiles, 1));
    if (result != OK)
        return result;
    current->supported = as_mask(gpu->profiles_supported);
    current->requested = current->enforced = as_mask(gpu->profiles_requested);
    return OK;
}

static nvml_return change_profiles(rig_gpu *gpu, const nvml_requested_profiles *asked, int request) {
    uint64_t bits = 0;
    nvml_return result = enter_profiles(gpu, asked->version, STRUCT_VERSION(nvml_requested_profiles, 1));
    if (result == OK)
        result = enter_setter(gpu);
    if (result == OK && as_bits(&asked->requested, gpu->profiles_supported, &bits) != OK)
        result = refuse(gpu, INVALID_ARGUMENT);
    if (result == OK && !gpu->ignores_writes)
        gpu->profiles_requested = request ? gpu->profiles_requested | bits : gpu->profiles_requested & ~bits;
    return result;
}

nvml_return nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(rig_gpu *gpu, nvml_requested_profiles *asked) {
    return change_profiles(gpu, asked, 1);
}

nvml_return nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(rig_gpu *gpu, nvml_requested_profiles *asked) {
    return change_profiles(gpu, asked, 0);
}

/* ---- power smoothing ---- */

typedef struct { uint32_t version, state; } nvml_smoothing_state;
typedef struct { uint32_t version, preset, parameter; double value; } nvml_smoothing_preset;

/* Set in %, W/s, W/s, ms; kept, and read as fields, in other units: that is NVML's doing. */
static const double KEPT_PER_SET[RIG_PRESET_PARAMETERS] = {PERCENT, 1000.0, 1000.0, 1.0};

static nvml_return enter_smoothing(rig_gpu *gpu, uint32_t version, uint32_t expected) {
    nvml_return result = enter_setter(gpu);
    if (result != OK)
        return result;
    if (version != expected)
        return ARGUMENT_VERSION_MISMATCH;
    if (!gpu->smoothing_supported)
        return refuse(gpu, NOT_SUPPORTED);
    return gpu->smoothing_privilege ? OK : refuse(gpu, NO_PERMISSION);
}

nvml_return nvmlDevicePowerSmoothingSetState(rig_gpu *gpu, nvml_smoothing_state *asked) {
    nvml_return result = enter_smoothing(gpu, asked->version, STRUCT_VERSION(nvml_smoothing_state, 1));
    if (result == OK && !gpu->ignores_writes)
        gpu->smoothing_enabled = asked->state != 0;
    return result;
}

nvml_return nvmlDevicePowerSmoothingActivatePresetProfile(rig_gpu *gpu, nvml_smoothing_preset *asked) {
    nvml_return result = enter_smoothing(gpu, asked->version, STRUCT_VERSION(nvml_smoothing_preset, 1));
    if (result == OK && asked->preset >= RIG_PRESETS)
        result = refuse(gpu, INVALID_ARGUMENT);
    if (result == OK && !gpu->ignores_writes)
        gpu->smoothing_preset = asked->preset;
    return result;
}

nvml_return nvmlDevicePowerSmoothingUpdatePresetProfileParam(rig_gpu *gpu, nvml_smoothing_preset *asked) {
    nvml_return result = enter_smoothing(gpu, asked->version, STRUCT_VERSION(nvml_smoothing_preset, 1));
    int known = asked->preset < RIG_PRESETS && asked->parameter < RIG_PRESET_PARAMETERS;
    if (result == OK && (!known || asked->value < 0))
        result = refuse(gpu, INVALID_ARGUMENT);
    if (result == OK && !gpu->ignores_writes)
        gpu->presets[asked->preset][asked->parameter] =
            (uint32_t)(asked->value * KEPT_PER_SET[asked->parameter] + 0.5);
    return result;
}
