/*
 * The registered device tables.
 */
#include "core/device.h"

static const int4mm_device_ops *host_ops, *gpu_ops;

void int4mm_register_devices(const int4mm_device_ops *host, const int4mm_device_ops *gpu) {
  host_ops = host, gpu_ops = gpu;
}

const int4mm_device_ops *int4mm_device_ops_of(int32_t device) {
  return device == INT4MM_CPU ? host_ops : gpu_ops;
}
