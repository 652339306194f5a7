/* A stand-in for libnvidia-ml.so.1, for tests on machines without a GPU. Built by the fixture in tests/support/nvml_library.py.
 *
 * It plays H100s unless told otherwise. What it is told stands in the environment variable FAKE_NVML, which is read again
 * at every call, so that one process can play many machines, and a machine that changes. Entries are separated by ';':
 *
 *   power=250000            a value, for every GPU; power@1=250000 for GPU 1 alone
 *   nvmlDeviceGetName!4     a call answers with that return code; nvmlDeviceGetName@1!15 on GPU 1 alone
 *   nvmlInitWithFlags~50    a call takes that many milliseconds
 *   field:186=9             a field value; field:186!3 is answered with that code
 *   gpm:2=nan, gpm:2!3      the same for a GPM metric
 *   mig@0=1,5               MIG is on: GPU instances 1 and 5, in slots 0 and 2 (slot 1 is empty)
 *
 * Values: gpus, uuid, name, util, controller, total, used, reserved, power, energy, temperature, sm_clock, memory_clock,
 * reasons, limit, driver, architecture, sample_ms, held_at (where the fields of what held the clocks down begin), smoothing
 * (1: the card has fields of power smoothing, where another driver's held_at is).
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_GPUS 16
#define MAX_SLOTS 7
#define MAX_RULES 128
#define RING 120

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, FUNCTION_NOT_FOUND = 13, UNKNOWN = 999 };
typedef unsigned long long u64;
typedef struct { int gpu, instance; } Device;
typedef union { double d; unsigned u; u64 ull; } Value;
typedef struct { char name[56]; char kind; int gpu; char text[72]; } Rule;
typedef struct { unsigned id, scope; long long stamp, latency; unsigned type; int ret; Value value; } Field;
typedef struct { u64 stamp; Value value; } Reading;
typedef struct { u64 at_us; int gpu, instance; } GpmSample;
typedef struct { unsigned id; int ret; double value; char *info[3]; } GpmMetric;
typedef struct { unsigned version, count; GpmSample *first, *second; GpmMetric metrics[]; } GpmQuery;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char scenario[8192];
static Rule rules[MAX_RULES];
static int rule_count, has_details, inits; /* details: of fields, GPM metrics and MIG */
static struct { char name[56]; int times; } calls[64];
static int call_count;
static Device gpus[MAX_GPUS], instances[MAX_GPUS][MAX_SLOTS];

static u64 ahead_us; /* of the machine's clock: what tests have let pass */

static u64 now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at); /* a real driver counts since 1970; here, nobody is to set the clock back */
    return (u64)at.tv_sec * 1000000 + (u64)at.tv_nsec / 1000 + ahead_us;
}

static void parse(const char *text) {
    char copy[sizeof scenario], *rest = copy, *entry;
    strncpy(scenario, text, sizeof scenario - 1);
    strcpy(copy, scenario);
    rule_count = has_details = 0;
    while ((entry = strsep(&rest, ";")) && rule_count < MAX_RULES) {
        size_t end = strcspn(entry, "=!~");
        if (!entry[end]) continue;
        Rule *rule = &rules[rule_count++];
        rule->kind = entry[end];
        entry[end] = 0;
        snprintf(rule->text, sizeof rule->text, "%s", entry + end + 1);
        char *at = strchr(entry, '@');
        rule->gpu = at ? atoi(at + 1) : -1;
        if (at) *at = 0;
        while (*entry == ' ' || *entry == '\n') entry++;
        snprintf(rule->name, sizeof rule->name, "%s", entry);
        has_details |= strchr(entry, ':') != NULL;
    }
}

/* Values are looked up in the scenario that the call found when it began: `called` looks. */

/* The text of a rule, the one for that GPU first, or NULL. The caller holds the lock. */
static const char *find(const char *name, char kind, int gpu) {
    const char *found = NULL;
    for (int i = 0; i < rule_count; i++)
        if (rules[i].kind == kind && !strcmp(rules[i].name, name) && (rules[i].gpu < 0 || rules[i].gpu == gpu)) {
            found = rules[i].text;
            if (rules[i].gpu >= 0) break;
        }
    return found;
}

static void look(void) {
    const char *text = getenv("FAKE_NVML");
    if (strcmp(text ? text : "", scenario)) parse(text ? text : "");
}

static u64 value(const char *name, int gpu, u64 otherwise) {
    pthread_mutex_lock(&lock);
    const char *text = find(name, '=', gpu);
    u64 found = text ? strtoull(text, NULL, 10) : otherwise;
    pthread_mutex_unlock(&lock);
    return found;
}

static void text(const char *name, int gpu, const char *otherwise, char *into, unsigned length) {
    pthread_mutex_lock(&lock);
    const char *found = find(name, '=', gpu);
    snprintf(into, length, "%s", found ? found : otherwise);
    pthread_mutex_unlock(&lock);
}

/* Counts a call, lets it take its time, and gives its return code. */
static int called(const char *name, const Device *device) {
    int gpu = device ? device->gpu : -1, i;
    pthread_mutex_lock(&lock);
    look();
    for (i = 0; i < call_count && strcmp(calls[i].name, name); i++) {}
    if (i == call_count && call_count < 64) snprintf(calls[call_count++].name, sizeof calls[0].name, "%s", name);
    if (i < 64) calls[i].times++;
    const char *code = find(name, '!', gpu), *delay = find(name, '~', gpu);
    int ret = code ? atoi(code) : OK;
    long ms = delay ? atol(delay) : 0;
    if (!ret && strncmp(name, "nvmlInit", 8) && !inits) ret = UNINITIALIZED;
    pthread_mutex_unlock(&lock);
    if (ms) nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
    return ret;
}

#define CALLED(device) do { int ret_ = called(__func__, device); if (ret_) return ret_; } while (0)
#define WHOLE(device) do { CALLED(device); if ((device)->instance >= 0) return NOT_SUPPORTED; } while (0)

EXPORT int fake_nvml_calls(const char *name) {
    for (int i = 0; i < call_count; i++)
        if (!strcmp(calls[i].name, name)) return calls[i].times;
    return 0;
}

EXPORT void fake_nvml_pass(unsigned milliseconds) { ahead_us += milliseconds * 1000ull; }
EXPORT void fake_nvml_forget(void) { call_count = 0; memset(calls, 0, sizeof calls); }

/* Library and devices */

EXPORT int nvmlInitWithFlags(unsigned flags) { (void)flags; CALLED(NULL); inits++; return OK; }
EXPORT int nvmlShutdown(void) { CALLED(NULL); inits--; return OK; }
EXPORT const char *nvmlErrorString(int code) {
    static char said[32];
    snprintf(said, sizeof said, "fake error %d", code);
    return said;
}
EXPORT int nvmlSystemGetDriverVersion(char *into, unsigned length) {
    CALLED(NULL);
    text("driver", -1, "590.48.01", into, length);
    return OK;
}
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { CALLED(NULL); *count = (unsigned)value("gpus", -1, 1); return OK; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    pthread_mutex_lock(&lock);
    look();
    pthread_mutex_unlock(&lock);
    if (index >= value("gpus", -1, 1) || index >= MAX_GPUS) return INVALID;
    gpus[index] = (Device){(int)index, -1};
    CALLED(&gpus[index]);
    *device = &gpus[index];
    return OK;
}
static void uuid_of(const Device *device, char *into, unsigned length) {
    char whole[72], otherwise[48];
    snprintf(otherwise, sizeof otherwise, "GPU-%08x-1111-2222-3333-444455556666", 0xa0000000u + (unsigned)device->gpu * 0x01000000u);
    text("uuid", device->gpu, otherwise, whole, sizeof whole);
    if (device->instance < 0) snprintf(into, length, "%s", whole);
    else snprintf(into, length, "MIG-%08x-0000-0000-0000-%012x", (unsigned)device->gpu, (unsigned)device->instance);
}
/* The GPU instance in a slot: every second slot is empty, as the driver leaves gaps. */
static Device *instance_in(int gpu, unsigned slot) {
    char list[72], *rest = list, *entry;
    text("mig", gpu, "", list, sizeof list);
    for (unsigned i = 0; slot < MAX_SLOTS && (entry = strsep(&rest, ",")); i += 2)
        if (*entry && i == slot) {
            instances[gpu][slot] = (Device){gpu, atoi(entry)};
            return &instances[gpu][slot];
        }
    return NULL;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    char own[96];
    CALLED(NULL);
    for (unsigned gpu = 0; gpu < value("gpus", -1, 1); gpu++) {
        gpus[gpu] = (Device){(int)gpu, -1};
        uuid_of(&gpus[gpu], own, sizeof own);
        if (!strcmp(own, uuid)) return *device = &gpus[gpu], OK;
        for (unsigned slot = 0; slot < MAX_SLOTS; slot++) {
            Device *found = instance_in((int)gpu, slot);
            if (!found) continue;
            uuid_of(found, own, sizeof own);
            if (!strcmp(own, uuid)) return *device = found, OK;
        }
    }
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetIndex(Device *device, unsigned *index) { CALLED(device); *index = (unsigned)device->gpu; return OK; }
EXPORT int nvmlDeviceGetUUID(Device *device, char *into, unsigned length) { CALLED(device); uuid_of(device, into, length); return OK; }
EXPORT int nvmlDeviceGetName(Device *device, char *into, unsigned length) {
    CALLED(device);
    text("name", device->gpu, "NVIDIA H100 80GB HBM3", into, length);
    return OK;
}
EXPORT int nvmlDeviceGetArchitecture(Device *device, unsigned *into) { CALLED(device); *into = (unsigned)value("architecture", device->gpu, 9); return OK; }
EXPORT int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    char list[72];
    CALLED(device);
    text("mig", device->gpu, "", list, sizeof list);
    *current = *pending = *list != 0;
    return OK;
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { CALLED(device); *count = MAX_SLOTS; return OK; }
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned slot, Device **found) {
    CALLED(device);
    *found = instance_in(device->gpu, slot);
    return *found ? OK : NOT_FOUND;
}
EXPORT int nvmlDeviceIsMigDeviceHandle(Device *device, unsigned *is) { CALLED(device); *is = device->instance >= 0; return OK; }
EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *device, Device **whole) {
    CALLED(device);
    gpus[device->gpu] = (Device){device->gpu, -1};
    *whole = &gpus[device->gpu];
    return OK;
}
EXPORT int nvmlDeviceGetGpuInstanceId(Device *device, unsigned *id) {
    CALLED(device);
    if (device->instance < 0) return NOT_SUPPORTED;
    *id = (unsigned)device->instance;
    return OK;
}

/* Readings */

static int is_mig(const Device *device) { char list[72]; text("mig", device->gpu, "", list, sizeof list); return *list != 0; }

EXPORT int nvmlDeviceGetUtilizationRates(Device *device, unsigned *into) {
    WHOLE(device);
    if (is_mig(device)) return NOT_SUPPORTED;
    into[0] = (unsigned)value("util", device->gpu, 100);
    into[1] = (unsigned)value("controller", device->gpu, 11);
    return OK;
}
static void memory_of(const Device *device, u64 *total, u64 *used, u64 *reserved) {
    u64 parts = device->instance < 0 ? 1 : 4;
    *total = value("total", device->gpu, 81559ull << 20) / parts;
    *used = value("used", device->gpu, 4ull << 30) / parts;
    *reserved = value("reserved", device->gpu, 479ull << 20) / parts;
}
EXPORT int nvmlDeviceGetMemoryInfo(Device *device, u64 *into) {
    u64 reserved;
    CALLED(device);
    memory_of(device, &into[0], &into[2], &reserved);
    into[2] += reserved; /* version 1 counts the driver's own as used */
    into[1] = into[0] - into[2];
    return OK;
}
EXPORT int nvmlDeviceGetPowerUsage(Device *device, unsigned *into) { WHOLE(device); *into = (unsigned)value("power", device->gpu, 631950); return OK; }
EXPORT int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *into) { WHOLE(device); *into = (unsigned)value("limit", device->gpu, 700000); return OK; }
/* As told, or what the power makes of the time since the machine was started, in steps of 20 ms. */
static u64 energy_of(const Device *device) {
    return value("energy", device->gpu, now_us() / 20000 * 20 * (value("power", device->gpu, 631950) / 1000));
}
EXPORT int nvmlDeviceGetTotalEnergyConsumption(Device *device, u64 *into) { WHOLE(device); *into = energy_of(device); return OK; }
EXPORT int nvmlDeviceGetTemperature(Device *device, unsigned sensor, unsigned *into) {
    (void)sensor;
    WHOLE(device);
    *into = (unsigned)value("temperature", device->gpu, 59);
    return OK;
}
EXPORT int nvmlDeviceGetClockInfo(Device *device, unsigned kind, unsigned *into) {
    WHOLE(device);
    *into = (unsigned)(kind == 2 ? value("memory_clock", device->gpu, 2619) : value("sm_clock", device->gpu, 1980));
    return OK;
}
static int field(const Device *device, Field *asked) {
    int ret = OK, is_told = 0;
    u64 number = 0;
    if (has_details) {
        char name[24];
        snprintf(name, sizeof name, "field:%u", asked->id);
        pthread_mutex_lock(&lock);
        const char *code = find(name, '!', device->gpu), *told = find(name, '=', device->gpu);
        ret = code ? atoi(code) : OK, is_told = told != NULL;
        number = told ? strtoull(told, NULL, 10) : 0;
        pthread_mutex_unlock(&lock);
    }
    asked->latency = 5;
    asked->value.ull = 0;
    if (ret) return ret;
    u64 held_at = value("held_at", device->gpu, 269);
    if (asked->id >= held_at && asked->id < held_at + 3) return asked->type = 3, asked->value.ull = number, OK;
    if (asked->id >= 251 && asked->id <= 273) return asked->type = 1, value("smoothing", device->gpu, 0) ? OK : NOT_SUPPORTED;
    switch (asked->id) {
    case 3: case 4: case 74: case 75: case 76: case 77: case 79: asked->type = 3; break;
    case 138: case 139: case 202: case 204: asked->type = 3; if (asked->scope != 0xffffffffu) return INVALID; break;
    case 142: case 143: case 144: case 145: asked->type = 1; break;
    case 82: asked->type = 1; if (!is_told) number = 54; break;
    case 83: asked->type = 3; if (!is_told) number = energy_of(device); break;
    case 185: asked->type = 1; if (!is_told) number = value("power", device->gpu, 631950); break;
    case 186: asked->type = 1; if (!is_told) number = 625680; break;
    case 197: case 198: asked->type = 3; if (!is_told) number = 1ull << 40; break;
    default: return NOT_SUPPORTED;
    }
    if (asked->type == 1) asked->value.u = (unsigned)number;
    else asked->value.ull = number;
    return OK;
}
EXPORT int nvmlDeviceGetFieldValues(Device *device, int count, Field *fields) {
    WHOLE(device);
    int worked = 0;
    long long stamp = (long long)now_us();
    for (int i = 0; i < count; i++) fields[i].stamp = stamp, worked += !(fields[i].ret = field(device, &fields[i]));
    return worked ? OK : NOT_SUPPORTED;
}
/* The driver's ring: one value every sample_ms, as many as it holds, newer than `last`. A sawtooth around the mean. */
EXPORT int nvmlDeviceGetSamples(Device *device, unsigned kind, u64 last, unsigned *type, unsigned *count, Reading *into) {
    WHOLE(device);
    if (kind > 1 || (kind == 1 && is_mig(device))) return NOT_SUPPORTED;
    u64 step = value("sample_ms", device->gpu, kind ? 167 : 20) * 1000, newest = now_us() / step;
    u64 middle = kind ? value("util", device->gpu, 100) : value("power", device->gpu, 631950);
    *type = 1;
    if (!into) { *count = RING; return OK; }
    unsigned given = 0;
    for (u64 i = newest - (RING - 1); i <= newest && given < *count; i++)
        if (i * step > last) {
            into[given].stamp = i * step;
            into[given++].value.ull = kind ? (i % 2 ? middle : middle / 2) : middle + (i % 10) * 5000 - 22500;
        }
    *count = given;
    return given ? OK : NOT_FOUND;
}

/* GPM */

EXPORT int nvmlGpmQueryDeviceSupport(Device *device, unsigned *support) { CALLED(device); support[1] = value("architecture", device->gpu, 9) >= 9; return OK; }
EXPORT int nvmlGpmSampleAlloc(GpmSample **sample) { CALLED(NULL); *sample = calloc(1, sizeof **sample); return OK; }
EXPORT int nvmlGpmSampleFree(GpmSample *sample) { CALLED(NULL); free(sample); return OK; }
EXPORT int nvmlGpmSampleGet(Device *device, GpmSample *sample) { CALLED(device); *sample = (GpmSample){now_us(), device->gpu, -1}; return OK; }
EXPORT int nvmlGpmMigSampleGet(Device *device, unsigned instance, GpmSample *sample) {
    CALLED(device);
    *sample = (GpmSample){now_us(), device->gpu, (int)instance};
    return OK;
}
EXPORT int nvmlGpmMetricsGet(GpmQuery *query) {
    static const struct { unsigned id; double value; } known[] = {
        {1, 95}, {2, 90}, {3, 45}, {5, 60}, {7, 58}, {10, 35}, {11, 0}, {12, 12}, {13, 5}, {20, 1200}, {21, 3400}, {60, 0}, {61, 0}};
    CALLED(NULL);
    if (!query->first || !query->second || !query->first->at_us || query->second->at_us < query->first->at_us + 100000)
        return INVALID; /* they must lie 100 ms apart */
    for (unsigned i = 0; i < query->count; i++) {
        GpmMetric *metric = &query->metrics[i];
        metric->ret = NOT_SUPPORTED;
        for (unsigned k = 0; k < sizeof known / sizeof *known; k++)
            if (known[k].id == metric->id) metric->ret = OK, metric->value = known[k].value;
        if (!has_details) continue;
        char name[24];
        snprintf(name, sizeof name, "gpm:%u", metric->id);
        pthread_mutex_lock(&lock);
        const char *code = find(name, '!', query->first->gpu), *told = find(name, '=', query->first->gpu);
        if (told) metric->value = atof(told);
        if (code) metric->ret = atoi(code);
        pthread_mutex_unlock(&lock);
    }
    return OK;
}

/* What other tools ask for: no process runs here, and nothing turns */

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, void *into) { (void)into; CALLED(device); *count = 0; return OK; }
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, void *into) { (void)into; CALLED(device); *count = 0; return OK; }
EXPORT int nvmlDeviceGetEncoderUtilization(Device *device, unsigned *share, unsigned *period) { CALLED(device); *share = *period = 0; return OK; }
EXPORT int nvmlDeviceGetDecoderUtilization(Device *device, unsigned *share, unsigned *period) { CALLED(device); *share = *period = 0; return OK; }
EXPORT int nvmlDeviceGetFanSpeed(Device *device, unsigned *speed) { (void)speed; CALLED(device); return NOT_SUPPORTED; }

/* What drivers of older days do not have */
#ifndef OLD_DRIVER
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
EXPORT int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *into) {
    CALLED(device);
    if (into->version != 0x02000028) return 25;
    memory_of(device, &into->total, &into->used, &into->reserved);
    into->free = into->total - into->used - into->reserved;
    return OK;
}
EXPORT int nvmlDeviceGetTemperatureV(Device *device, int *into) {
    WHOLE(device);
    if ((unsigned)into[0] != 0x100000Cu) return 25;
    into[2] = (int)value("temperature", device->gpu, 59);
    return OK;
}
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(Device *device, u64 *into) { WHOLE(device); *into = value("reasons", device->gpu, 0); return OK; }
#else
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, u64 *into) { WHOLE(device); *into = value("reasons", device->gpu, 0); return OK; }
#endif
