/* A driver library for GPUs that are not there: the calls of NVML that a power agent makes.
 *
 * Loaded by the unmodified nvidia-ml-py in place of NVIDIA's libnvidia-ml.so.1, found by LD_LIBRARY_PATH.
 * It holds no state and no physics: every getter reads, every setter writes the shared memory named by
 * POWERBLOCK_RIG_GPUS (see rig_gpus.h), where a plant model moves the numbers and a scenario injects faults.
 * Signatures, codes and units (mW, mJ, MHz) are those of nvml.h; a device handle is a pointer to its record.
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
} nvml_return;

typedef struct {
    uint32_t field_id;
    uint32_t scope_id;
    int64_t timestamp_us;
    int64_t latency_us;
    uint32_t value_type; /* 1: unsigned int, 3: unsigned long long */
    uint32_t result;
    union {
        uint32_t u32;
        uint64_t u64;
    } value;
} nvml_field_value;

enum { FIELD_FIRST = 185, FIELD_ENERGY = 191, FIELD_LAST = 192 };
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

static nvml_return enter(rig_gpu *gpu, uint32_t kind) {
    rig_header *header = rig;
    if (header == NULL)
        return UNINITIALIZED;
    if (gpu < records(header) || gpu >= records(header) + header->gpu_count)
        return INVALID_ARGUMENT;
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

nvml_return nvmlDeviceGetHandleByUUID(const char *uuid, rig_gpu **gpu) {
    if (rig == NULL)
        return UNINITIALIZED;
    for (unsigned index = 0; index < rig->gpu_count; index++) {
        if (strncmp(records(rig)[index].uuid, uuid, sizeof records(rig)->uuid) == 0) {
            *gpu = records(rig) + index;
            return enter(*gpu, RIG_BLOCK_READS);
        }
    }
    return NOT_FOUND;
}

/* ---- identity ---- */

nvml_return nvmlDeviceGetIndex(rig_gpu *gpu, unsigned *index) {
    ENTER(gpu, RIG_BLOCK_READS);
    *index = (unsigned)(gpu - records(rig));
    return OK;
}

nvml_return nvmlDeviceGetUUID(rig_gpu *gpu, char *uuid, unsigned length) {
    ENTER(gpu, RIG_BLOCK_READS);
    return length < UUID_BYTES_MIN ? INSUFFICIENT_SIZE : copy_text(uuid, length, gpu->uuid);
}

nvml_return nvmlDeviceGetName(rig_gpu *gpu, char *name, unsigned length) {
    ENTER(gpu, RIG_BLOCK_READS);
    return copy_text(name, length, gpu->name);
}

/* ---- measured ---- */

static uint32_t enforced_mw(rig_gpu *gpu) {
    uint32_t requested_mw = gpu->requested_mw, oob_limit_mw = gpu->oob_limit_mw;
    return requested_mw < oob_limit_mw ? requested_mw : oob_limit_mw;
}

#define GETTER(name, type, expression)           \
    nvml_return name(rig_gpu *gpu, type *value) { \
        ENTER(gpu, RIG_BLOCK_READS);              \
        *value = (expression);                    \
        return OK;                                \
    }

GETTER(nvmlDeviceGetPowerUsage, unsigned, gpu->average_mw)
GETTER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, gpu->energy_mj)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->requested_mw)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned, gpu->default_mw)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, enforced_mw(gpu))
GETTER(nvmlDeviceGetPersistenceMode, unsigned, gpu->persistence_mode)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->clock_reasons)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->clock_reasons)

nvml_return nvmlDeviceGetPowerManagementLimitConstraints(rig_gpu *gpu, unsigned *min_mw, unsigned *max_mw) {
    ENTER(gpu, RIG_BLOCK_READS);
    *min_mw = gpu->min_mw;
    *max_mw = gpu->max_mw;
    return OK;
}

nvml_return nvmlDeviceGetMigMode(rig_gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu, RIG_BLOCK_READS);
    *current = *pending = gpu->mig_mode;
    return OK;
}

nvml_return nvmlDeviceGetClockInfo(rig_gpu *gpu, unsigned clock, unsigned *mhz) {
    enum { GRAPHICS = 0, SM = 1, MEMORY = 2 };
    ENTER(gpu, RIG_BLOCK_READS);
    if (clock != GRAPHICS && clock != SM && clock != MEMORY)
        return NOT_SUPPORTED;
    *mhz = clock == MEMORY ? gpu->memory_clock_mhz : gpu->clock_mhz;
    return OK;
}

nvml_return nvmlDeviceGetTemperature(rig_gpu *gpu, unsigned sensor, unsigned *celsius) {
    ENTER(gpu, RIG_BLOCK_READS);
    if (sensor != 0)
        return INVALID_ARGUMENT;
    *celsius = gpu->temperature_c;
    return OK;
}

static nvml_return field_value(rig_gpu *gpu, nvml_field_value *field) {
    if (field->scope_id != 0 || field->field_id < FIELD_FIRST || field->field_id > FIELD_LAST)
        return NOT_SUPPORTED;
    if (gpu->unsupported_fields & (1u << (field->field_id - FIELD_FIRST)))
        return NOT_SUPPORTED;
    const uint32_t in_order_mw[] = {gpu->average_mw, gpu->instant_mw,    gpu->min_mw, gpu->max_mw,
                                    gpu->default_mw, enforced_mw(gpu), 0,           gpu->requested_mw};
    field->value_type = field->field_id == FIELD_ENERGY ? 3 : 1;
    if (field->field_id == FIELD_ENERGY)
        field->value.u64 = gpu->energy_mj;
    else
        field->value.u32 = in_order_mw[field->field_id - FIELD_FIRST];
    return OK;
}

nvml_return nvmlDeviceGetFieldValues(rig_gpu *gpu, int count, nvml_field_value *fields) {
    struct timespec now;
    ENTER(gpu, RIG_BLOCK_READS);
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        fields[i].timestamp_us = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
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

nvml_return nvmlDeviceSetPowerManagementLimit(rig_gpu *gpu, unsigned limit_mw) {
    struct timespec now;
    nvml_return result = enter_setter(gpu);
    if (result != OK)
        return result;
    if (limit_mw < gpu->min_mw || limit_mw > gpu->max_mw)
        return refuse(gpu, INVALID_ARGUMENT);
    if (gpu->ignores_writes)
        return OK;
    clock_gettime(CLOCK_MONOTONIC, &now);
    gpu->requested_mw = limit_mw;
    gpu->last_write_ns = (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
    gpu->write_count++; /* last: who sees the count sees the write */
    return OK;
}

nvml_return nvmlDeviceSetGpuLockedClocks(rig_gpu *gpu, unsigned min_mhz, unsigned max_mhz) {
    nvml_return result = enter_setter(gpu);
    if (result != OK)
        return result;
    if (min_mhz > max_mhz)
        return refuse(gpu, INVALID_ARGUMENT);
    if (!gpu->ignores_writes) {
        gpu->locked_clock_min_mhz = min_mhz;
        gpu->locked_clock_max_mhz = max_mhz;
    }
    return OK;
}

nvml_return nvmlDeviceResetGpuLockedClocks(rig_gpu *gpu) { return nvmlDeviceSetGpuLockedClocks(gpu, 0, RIG_NONE); }
