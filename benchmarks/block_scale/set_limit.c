/* What `nvidia-smi -i INDEX -pl WATTS` comes down to, and nothing else: load the driver's library, find one GPU,
 * request a limit, leave. A rival's controller starts one of these per GPU. */
#include <stdio.h>
#include <stdlib.h>

typedef struct nvml_device *nvml_device;
int nvmlInitWithFlags(unsigned flags);
int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvml_device *device);
int nvmlDeviceSetPowerManagementLimit(nvml_device device, unsigned limit_mw);
int nvmlShutdown(void);

int main(int count, char **words) {
    nvml_device device;
    if (count != 3) {
        fprintf(stderr, "usage: %s INDEX MILLIWATTS\n", words[0]);
        return 2;
    }
    if (nvmlInitWithFlags(0) != 0 || nvmlDeviceGetHandleByIndex_v2((unsigned)atoi(words[1]), &device) != 0 ||
        nvmlDeviceSetPowerManagementLimit(device, (unsigned)atoi(words[2])) != 0)
        return 1;
    nvmlShutdown();
    return 0;
}
