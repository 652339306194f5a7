/* The hot path in C: the same classes as in reference.py, which explains them, and the same numbers.

   Rules:
   - CPython's stable ABI of 3.10 alone, so that one build serves every later version. No global lock, no thread.
   - None, True and False are returned by Py_NewRef: Py_RETURN_NONE of Python 3.12 adds no reference, as they are immortal there,
     and a build by 3.12 that pip has kept is installed into 3.10 and 3.11, too.
   - Every function here runs under the interpreter's lock and calls no Python code between reading the clock and storing
     the duration. So neither another thread nor a signal's handler ever sees half of a transition.
   - A case that is not the usual one calls the method of the Python subclass that handles it (`_enter_elsewhere` and so on).
   - Links between objects are checked when they are set, never when they are followed. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <structmember.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#ifdef _WIN32
#include <windows.h>
#else
#include <time.h>
#endif

#define LAYOUT 1 /* raise it, and the one in hot_path.py, with every change of what Python calls here */

typedef int64_t ns_t;

/* ---- the clock ------------------------------------------------------------------------------------------------------- */

static PyObject *given_clock = NULL; /* a test's clock */

/* Return the host's clock in ns, that of time.perf_counter_ns. On an error of a given clock: -1 with an exception set. */
static ns_t read_clock(void)
{
    if (given_clock != NULL) {
        PyObject *answer = PyObject_CallObject(given_clock, NULL);
        ns_t at = answer == NULL ? -1 : (ns_t)PyLong_AsLongLong(answer);
        Py_XDECREF(answer);
        return at;
    }
#if defined(_WIN32)
    static LARGE_INTEGER frequency;
    LARGE_INTEGER ticks;
    if (frequency.QuadPart == 0)
        QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&ticks);
    return ticks.QuadPart / frequency.QuadPart * 1000000000 +
           ticks.QuadPart % frequency.QuadPart * 1000000000 / frequency.QuadPart;
#elif defined(__APPLE__)
    return (ns_t)clock_gettime_nsec_np(CLOCK_UPTIME_RAW);
#else
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (ns_t)at.tv_sec * 1000000000 + at.tv_nsec;
#endif
}

#define CLOCK_FAILED(at) ((at) == -1 && PyErr_Occurred())

/* ---- durations: an exponential histogram, counted in place ------------------------------------------------------------ */

enum { BUCKETS = 160, FEW = 64, MANY = 2048, FINEST = 20 }; /* FEW and MANY: durations that are kept one by one */

/* The durations of one span since they were last taken, in 160 neighbouring buckets from `first` on. The buckets cover more
   than the values in use, so that few values need another range. `bounds` holds their upper bounds in whole ns, and `recent`
   the last durations. A service may have thousands of places: the spans of other threads than the timer's own are without
   bounds, and look up more slowly. */
typedef struct {
    int64_t counts[BUCKETS];
    int64_t lower, upper, sum, min, max, zeros, n;
    int scale, first, last, low, high; /* low and high: the positions in use, low > high if there are none */
    int has_bounds, room;              /* room: for how many recent durations there is memory */
    int64_t *recent;
    int64_t bounds[];
} Durations;

static volatile double two = 2.0; /* a constant would let a compiler use exp2, whose last digit may differ from Python's ** */

/* The largest whole ns of a bucket; see upper_bound_ns in records/histogram.py. */
static int64_t upper_bound(int index, int scale)
{
    double bound = pow(two, (index + 1) * pow(two, -scale)) * 1e9;
    return bound >= 9.2e18 ? INT64_MAX : (int64_t)bound;
}

static int bucket_index(int64_t value, int scale)
{
    int index = (int)ceil(log2((double)value / 1e9) * pow(two, scale)) - 1;
    while (value > upper_bound(index, scale))
        index++;
    while (value <= upper_bound(index - 1, scale))
        index--;
    return index;
}

/* Choose the finest scale at which this value and all counted ones fit, and place 160 buckets around them. */
static void make_room(Durations *d, int64_t value)
{
    int64_t counts[BUCKETS] = {0};
    int index = bucket_index(value, d->scale), low = index, high = index, steps = 0;
    int is_used = d->low <= d->high;
    if (is_used) {
        low = d->first + d->low < low ? d->first + d->low : low;
        high = d->first + d->high > high ? d->first + d->high : high;
    }
    while ((high >> steps) - (low >> steps) >= BUCKETS)
        steps++;
    low >>= steps;
    high >>= steps;
    int first = low - (BUCKETS - 1 - (high - low)) / 2;
    if (is_used) {
        for (int i = d->low; i <= d->high; i++)
            counts[((d->first + i) >> steps) - first] += d->counts[i];
        d->low = ((d->first + d->low) >> steps) - first;
        d->high = ((d->first + d->high) >> steps) - first;
    }
    memcpy(d->counts, counts, sizeof counts);
    d->scale -= steps;
    d->first = first;
    for (int i = 0; d->has_bounds && i < BUCKETS; i++)
        d->bounds[i] = upper_bound(first + i, d->scale);
    d->lower = upper_bound(first - 1, d->scale);
    d->upper = upper_bound(first + BUCKETS - 1, d->scale);
    d->last = 0;
}

/* Return the position of the bucket of a value that is within the bounds: mostly it is that of the value before. */
static int position_of(const Durations *d, int64_t value)
{
    int below = 0, above = BUCKETS - 1, at = d->last;
    if (value <= d->bounds[at] && (at == 0 || value > d->bounds[at - 1]))
        return at;
    while (below < above) {
        int middle = (below + above) / 2;
        if (value > d->bounds[middle])
            below = middle + 1;
        else
            above = middle;
    }
    return below;
}

/* Keep a duration among the recent ones, which take more memory only once there are many. */
static void keep_recent(Durations *d, int64_t value)
{
    if (d->n == d->room && d->room < (d->has_bounds ? MANY : FEW)) {
        int room = d->room == 0 ? FEW : 2 * d->room;
        int64_t *recent = PyMem_Realloc(d->recent, room * sizeof *recent);
        if (recent != NULL) {
            d->recent = recent;
            d->room = room;
        }
    }
    if (d->room > 0)
        d->recent[d->n % d->room] = value;
}

static void count_duration(Durations *d, int64_t value)
{
    d->sum += value;
    d->min = d->n == 0 || value < d->min ? value : d->min;
    d->max = d->n == 0 || value > d->max ? value : d->max;
    keep_recent(d, value);
    d->n++;
    if (value <= 0) {
        d->zeros++;
        return;
    }
    if (value > d->upper || value <= d->lower)
        make_room(d, value);
    int at = d->has_bounds ? position_of(d, value) : bucket_index(value, d->scale) - d->first;
    d->counts[at]++;
    d->last = at;
    if (d->low > d->high)
        d->low = d->high = at;
    else if (at < d->low)
        d->low = at;
    else if (at > d->high)
        d->high = at;
}

static Durations *new_durations(int has_bounds)
{
    size_t size = sizeof(Durations) + (has_bounds ? BUCKETS * sizeof(int64_t) : 0);
    Durations *d = PyMem_Malloc(size);
    if (d != NULL) {
        memset(d, 0, size);
        d->scale = FINEST;
        d->low = 1; /* above `high`: no bucket is in use, and no value is within the bounds */
        d->has_bounds = has_bounds;
    }
    return d;
}

static void free_durations(Durations **d)
{
    if (*d != NULL)
        PyMem_Free((*d)->recent);
    PyMem_Free(*d);
    *d = NULL;
}

/* ---- the objects ------------------------------------------------------------------------------------------------------ */

typedef struct Span Span;
typedef struct Tree Tree;

typedef struct {
    PyObject_HEAD
    Span *current;
    PyObject *look_up;
    unsigned long thread; /* its identifier, as threading.get_ident returns it */
    char is_owner;
} Place;

struct Span {
    PyObject_HEAD
    Tree *tree;
    Place *state;
    Span *parent;
    PyObject *name, *children, *timing;
    Durations *durations, *taken; /* taken: those that are being added to a histogram, until they are */
    ns_t t0;
    int depth, shared;
};

struct Tree {
    PyObject_HEAD
    Span *root, *step;
    PyObject *device, *pending, *samples;
    long long limit, steps;
    char cold, is_inference;
};

typedef struct {
    PyObject_HEAD
    Place *state;
    Tree *tree;
    Span *wait;
    PyObject *samples;
    long long step_started, handed_at;
    char in_step, closed;
} Pass;

typedef struct {
    PyObject_HEAD
    Span *expected, *span;
    Pass *segment;
    PyObject *known;
    char is_on_device;
} FastPath;

typedef struct {
    PyObject_HEAD
    FastPath *fast, *other;
    Place *state;
    PyObject *slow, *hooked, *takes_gradients;
} Hook;

/* The iterator of a loader that is followed, with the last way from a batch to the next one. */
typedef struct {
    PyObject_HEAD
    Span *before, *gap; /* open when the next batch is asked for, and after it was handed out */
    Pass *segment;
    PyObject *ignored, *size;
    long long handed, notable;
} Feed;

static PyTypeObject *place_type, *span_type, *tree_type, *pass_type, *fast_path_type, *hook_type, *feed_type;
static PyObject *s_shape, *s_training; /* names, made once */

#define NONE_OR(object) ((object) == NULL || (PyObject *)(object) == Py_None ? NULL : (object))

/* Replace a held reference, of any of our types (so without strict aliasing; see setup.py). The old object is released last,
   because that may run any code. */
static void replace(PyObject **place, PyObject *by)
{
    PyObject *before = *place;
    Py_XINCREF(by);
    *place = by;
    Py_XDECREF(before);
}

#define SET(place, by) replace((PyObject **)&(place), (PyObject *)(by))

/* A link to an object of one of our types, or None. */
typedef struct {
    Py_ssize_t offset;
    PyTypeObject **type;
} Link;

static PyObject *get_link(PyObject *self, void *closure)
{
    PyObject *held = *(PyObject **)((char *)self + ((Link *)closure)->offset);
    held = held == NULL ? Py_None : held;
    Py_INCREF(held);
    return held;
}

static int set_link(PyObject *self, PyObject *value, void *closure)
{
    Link *link = closure;
    if (value != NULL && value != Py_None && !PyObject_TypeCheck(value, *link->type)) {
        PyErr_SetString(PyExc_TypeError, "the hot path links its own objects only");
        return -1;
    }
    replace((PyObject **)((char *)self + link->offset), value == Py_None ? NULL : value);
    return 0;
}

#define LINK(object, field, type) static Link link_##object##_##field = {offsetof(object, field), &type};
LINK(Place, current, span_type)
LINK(Span, tree, tree_type) LINK(Span, state, place_type) LINK(Span, parent, span_type)
LINK(Tree, root, span_type) LINK(Tree, step, span_type)
LINK(Pass, state, place_type) LINK(Pass, tree, tree_type) LINK(Pass, wait, span_type)
LINK(Feed, before, span_type) LINK(Feed, gap, span_type) LINK(Feed, segment, pass_type)

/* The life of all types: each lists the offsets of what it holds, ended by 0. */
static const size_t place_holds[] = {offsetof(Place, current), offsetof(Place, look_up), 0};
static const size_t span_holds[] = {offsetof(Span, tree), offsetof(Span, state), offsetof(Span, parent), offsetof(Span, name),
                                    offsetof(Span, children), offsetof(Span, timing), 0};
static const size_t tree_holds[] = {offsetof(Tree, root), offsetof(Tree, step), offsetof(Tree, device),
                                    offsetof(Tree, pending), offsetof(Tree, samples), 0};
static const size_t pass_holds[] = {offsetof(Pass, state), offsetof(Pass, tree), offsetof(Pass, wait),
                                    offsetof(Pass, samples), 0};
static const size_t fast_path_holds[] = {offsetof(FastPath, expected), offsetof(FastPath, span), offsetof(FastPath, segment),
                                         offsetof(FastPath, known), 0};
static const size_t hook_holds[] = {offsetof(Hook, fast), offsetof(Hook, other), offsetof(Hook, state), offsetof(Hook, slow),
                                    offsetof(Hook, hooked), offsetof(Hook, takes_gradients), 0};

static const size_t feed_holds[] = {offsetof(Feed, before), offsetof(Feed, gap), offsetof(Feed, segment),
                                    offsetof(Feed, ignored), offsetof(Feed, size), 0};

static int visit_held(PyObject *self, const size_t *holds, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    for (; *holds; holds++)
        Py_VISIT(*(PyObject **)((char *)self + *holds));
    return 0;
}

static int clear_held(PyObject *self, const size_t *holds)
{
    for (; *holds; holds++)
        replace((PyObject **)((char *)self + *holds), NULL);
    return 0;
}

static void release(PyObject *self, const size_t *holds)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear_held(self, holds);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

#define LIFE(kind)                                                                       \
    static int kind##_traverse(PyObject *self, visitproc visit, void *arg)               \
    {                                                                                    \
        return visit_held(self, kind##_holds, visit, arg);                               \
    }                                                                                    \
    static int kind##_clear(PyObject *self)                                              \
    {                                                                                    \
        return clear_held(self, kind##_holds);                                           \
    }

#define DEALLOC(kind)                                                                    \
    static void kind##_dealloc(PyObject *self)                                           \
    {                                                                                    \
        release(self, kind##_holds);                                                     \
    }

LIFE(place) DEALLOC(place) LIFE(span) LIFE(tree) DEALLOC(tree) LIFE(pass) DEALLOC(pass)
LIFE(fast_path) DEALLOC(fast_path) LIFE(hook) DEALLOC(hook) LIFE(feed) DEALLOC(feed)

static void span_dealloc(PyObject *self)
{
    free_durations(&((Span *)self)->durations);
    free_durations(&((Span *)self)->taken);
    release(self, span_holds);
}

/* ---- spans ------------------------------------------------------------------------------------------------------------ */

/* Count a duration of a span. Return -1 with an exception set if there is no memory for it. */
static int record(Span *span, ns_t duration)
{
    if (span->durations == NULL) {
        span->durations = new_durations(span->state != NULL && span->state->is_owner);
        if (span->durations == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    count_duration(span->durations, duration);
    return 0;
}

static int is_mine(Place *place)
{
    return place != NULL && place->is_owner && place->thread == PyThread_get_thread_ident();
}

static PyObject *span_enter(PyObject *object, PyObject *unused)
{
    Span *self = (Span *)object;
    Place *place = self->state;
    (void)unused;
    if (!is_mine(place) || place->current != self->parent || self->parent == NULL)
        return PyObject_CallMethod(object, "_enter_elsewhere", NULL);
    ns_t at = read_clock();
    if (CLOCK_FAILED(at))
        return NULL;
    self->t0 = at;
    SET(place->current, self);
    Py_INCREF(object);
    return object;
}

static PyObject *span_exit(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Span *self = (Span *)object;
    Place *place = self->state;
    ns_t end = read_clock();
    if (CLOCK_FAILED(end))
        return NULL;
    if (place == NULL || place->current != self || self->shared || self->parent == NULL)
        return PyObject_CallMethod(object, "_exit_elsewhere", "Li", (long long)end, count > 0 && args[0] != Py_None);
    int failed = record(self, end - self->t0);
    SET(place->current, self->parent);
    if (failed)
        return NULL;
    return Py_NewRef(Py_None);
}

static int span_init(PyObject *object, PyObject *args, PyObject *unused)
{
    Span *self = (Span *)object;
    PyObject *state, *parent;
    (void)unused;
    if (!PyArg_ParseTuple(args, "O!O", place_type, &state, &parent) || set_link(object, parent, &link_Span_parent))
        return -1;
    SET(self->state, state);
    self->shared = !self->state->is_owner;
    self->depth = self->parent == NULL ? 0 : self->parent->depth + 1;
    return 0;
}

/* Count a number that need not be a duration: the samples of a batch, times 1e9, may be beyond 64 bits. */
static PyObject *span_record(PyObject *object, PyObject *duration)
{
    const int64_t most = INT64_MAX / 4;
    Durations *d = ((Span *)object)->durations;
    int is_beyond = 0;
    int64_t value = PyLong_AsLongLongAndOverflow(duration, &is_beyond);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    if (is_beyond || value > most || value < -most || (d != NULL && (d->sum > most || d->sum < -most)))
        return PyObject_CallMethod(object, "record_large", "O", duration);
    if (record((Span *)object, value))
        return NULL;
    return Py_NewRef(Py_None);
}

/* Set the durations aside, and return them as arguments of `Histogram.of`, or None if there are none. Those that were set
   aside before, and not added to a histogram since, come first. */
static PyObject *span_take_new(PyObject *object, PyObject *unused)
{
    Span *self = (Span *)object;
    (void)unused;
    if (self->taken == NULL) {
        self->taken = self->durations;
        self->durations = NULL;
    }
    Durations *d = self->taken;
    if (d == NULL)
        return Py_NewRef(Py_None);
    PyObject *counts = PyDict_New();
    for (int i = d->low; counts != NULL && i <= d->high; i++) {
        if (d->counts[i] == 0)
            continue;
        PyObject *index = PyLong_FromLong(d->first + i), *number = PyLong_FromLongLong(d->counts[i]);
        if (index == NULL || number == NULL || PyDict_SetItem(counts, index, number))
            Py_CLEAR(counts);
        Py_XDECREF(index);
        Py_XDECREF(number);
    }
    if (counts == NULL)
        return NULL;
    int scale = d->low > d->high ? FINEST : d->scale;
    return Py_BuildValue("{s:i,s:N,s:L,s:L,s:L,s:L}", "scale", scale, "counts", counts, "zero_count", (long long)d->zeros,
                         "sum_ns", (long long)d->sum, "min_ns", (long long)d->min, "max_ns", (long long)d->max);
}

static PyObject *span_recent_ns(PyObject *object, PyObject *times)
{
    Durations *d = ((Span *)object)->durations;
    long long wanted = PyLong_AsLongLong(times), sum = 0;
    if (wanted == -1 && PyErr_Occurred())
        return NULL;
    for (long long i = 0; d != NULL && i < wanted && i < d->room && i < d->n; i++)
        sum += d->recent[(d->n - 1 - i) % d->room];
    return PyLong_FromLongLong(sum);
}

static PyObject *span_get_n(PyObject *object, void *unused)
{
    Durations *d = ((Span *)object)->durations;
    (void)unused;
    return PyLong_FromLongLong(d == NULL ? 0 : d->n);
}

static int span_set_n(PyObject *object, PyObject *value, void *unused)
{
    (void)unused;
    if (value == NULL || PyLong_AsLong(value) != 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "only 0, which forgets the durations");
        return -1;
    }
    free_durations(&((Span *)object)->durations);
    return 0;
}

static PyObject *span_get_taken(PyObject *object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((Span *)object)->taken != NULL);
}

static int span_set_taken(PyObject *object, PyObject *value, void *unused)
{
    (void)unused;
    if (value != Py_False) {
        PyErr_SetString(PyExc_ValueError, "only False, once the durations are in a histogram");
        return -1;
    }
    free_durations(&((Span *)object)->taken);
    return 0;
}

/* ---- the look-up of a phase by its name --------------------------------------------------------------------------------- */

static PyObject *place_phase(PyObject *object, PyObject *name)
{
    Place *self = (Place *)object;
    if (self->current != NULL && self->current->children != NULL) {
        PyObject *found = PyDict_GetItemWithError(self->current->children, name);
        if (found != NULL) {
            Py_INCREF(found);
            return found;
        }
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError))
            return NULL;
        PyErr_Clear(); /* what cannot be hashed is refused by the slow way, in words */
    }
    return PyObject_CallFunctionObjArgs(self->look_up, name, NULL);
}

static int place_init(PyObject *object, PyObject *args, PyObject *named)
{
    static char *names[] = {"is_owner", NULL};
    Place *self = (Place *)object;
    int is_owner = 0;
    if (!PyArg_ParseTupleAndKeywords(args, named, "p", names, &is_owner))
        return -1;
    self->is_owner = (char)is_owner;
    self->thread = PyThread_get_thread_ident();
    return 0;
}

static PyObject *place_is_mine(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(is_mine((Place *)self));
}

/* ---- the steps of a pass ------------------------------------------------------------------------------------------------ */

/* Return 1 if everything is set that a step needs, else 0 with an exception set. */
static int is_whole(Pass *self)
{
    if (self->state != NULL && self->wait != NULL && self->tree != NULL && self->tree->root != NULL && self->tree->step != NULL)
        return 1;
    PyErr_SetString(PyExc_ValueError, "a pass needs a place, a tree and a wait");
    return 0;
}

/* Return 1 if the end of a step needs more than adding up: a first step, inference, marks of the GPU to read; -1 on an error. */
static int needs_more(Tree *tree)
{
    if (tree->cold || tree->is_inference)
        return 1;
    if (NONE_OR(tree->device) == NULL || NONE_OR(tree->pending) == NULL)
        return 0;
    Py_ssize_t waiting = PyObject_Size(tree->pending);
    return waiting < 0 ? -1 : waiting > 0;
}

/* Call a method that takes whole ns, and drop its answer. */
static int call_ns(void *object, const char *method, ns_t first, ns_t second)
{
    PyObject *answer = PyObject_CallMethod(object, method, "LL", (long long)first, (long long)second);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

/* End a step now and begin to wait. The caller has made sure that the step is the innermost thing that is open. */
static int end_step_and_wait(Pass *self, ns_t end)
{
    Tree *tree = self->tree;
    ns_t duration = end - self->step_started;
    if (record(tree->step, duration))
        return -1;
    self->in_step = 0;
    self->step_started = end;
    self->wait->t0 = end;
    SET(self->state->current, self->wait);
    return duration > tree->limit ? call_ns(tree, "exceed", duration, end) : 0;
}

static PyObject *pass_begin_wait(PyObject *object, PyObject *unused)
{
    Pass *self = (Pass *)object;
    (void)unused;
    if (!is_whole(self))
        return NULL;
    if (self->closed || self->state->thread != PyThread_get_thread_ident())
        return Py_NewRef(Py_False);
    int more = needs_more(self->tree);
    if (more < 0)
        return NULL;
    if (more || !self->in_step || !self->state->is_owner || self->state->current != self->tree->root)
        return PyObject_CallMethod(object, "begin_wait_slowly", NULL);
    ns_t end = read_clock();
    if (CLOCK_FAILED(end) || end_step_and_wait(self, end))
        return NULL;
    return Py_NewRef(Py_True);
}

/* End the wait at this moment, count the batch and begin the step. */
static int count_batch(Pass *self, ns_t end, PyObject *size, PyObject *item)
{
    Tree *tree = self->tree;
    if (record(self->wait, end - self->wait->t0))
        return -1;
    SET(self->state->current, tree->root);
    PyObject *samples = PyObject_CallFunctionObjArgs(size, item, NULL);
    if (samples == NULL)
        return -1;
    SET(self->samples, samples);
    Py_DECREF(samples);
    tree->steps++;
    self->in_step = 1;
    if (samples == Py_None)
        return 0;
    PyObject *sum = NONE_OR(tree->samples) == NULL ? (Py_INCREF(samples), samples) : PyNumber_Add(tree->samples, samples);
    if (sum == NULL)
        return -1;
    SET(tree->samples, sum);
    Py_DECREF(sum);
    return 0;
}

static PyObject *pass_end_wait(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Pass *self = (Pass *)object;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "end_wait takes a function and an item");
        return NULL;
    }
    ns_t end = read_clock();
    int more = CLOCK_FAILED(end) || !is_whole(self) ? -1 : needs_more(self->tree);
    if (more < 0)
        return NULL;
    if (more || !self->state->is_owner || self->state->current != self->wait || self->wait->shared)
        return PyObject_CallMethod(object, "end_wait_slowly", "OO", args[0], args[1]);
    if (count_batch(self, end, args[0], args[1]))
        return NULL;
    return Py_NewRef(Py_True);
}

/* ---- the batches of a loader that is followed ---------------------------------------------------------------------------- */

/* Return 1 if the pass goes on as it did with the last batch, from this span; 0 if the observer has to decide; -1 on an error. */
static int goes_on(Feed *self, Span *from)
{
    Pass *pass = self->segment;
    if (pass == NULL || from == NULL || pass->closed || !is_mine(pass->state) || pass->state->current != from)
        return 0;
    if (self->ignored == NULL || !PyList_Check(self->ignored) || PyList_Size(self->ignored) > 0)
        return 0;
    if (!is_whole(pass))
        return -1;
    int more = needs_more(pass->tree);
    return more < 0 ? -1 : !more;
}

static PyObject *feed_fetch_begins(PyObject *object, PyObject *unused)
{
    Feed *self = (Feed *)object;
    (void)unused;
    int is_usual = goes_on(self, self->before);
    if (is_usual < 0)
        return NULL;
    if (!is_usual || !self->segment->in_step)
        return PyObject_CallMethod(object, "fetch_begins_slowly", NULL);
    Pass *pass = self->segment;
    Span *before = self->before;
    ns_t end = read_clock();
    if (CLOCK_FAILED(end) || (before != pass->tree->root && record(before, end - before->t0)))
        return NULL;
    PyObject *wait = (PyObject *)pass->wait;
    Py_INCREF(wait); /* a slow step, or a slice that is due, runs Python code */
    if (end_step_and_wait(pass, end))
        Py_CLEAR(wait);
    return wait;
}

static PyObject *feed_fetch_ends(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Feed *self = (Feed *)object;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "fetch_ends takes the wait and the batch");
        return NULL;
    }
    ns_t end = read_clock();
    int is_usual = CLOCK_FAILED(end) ? -1 : goes_on(self, self->segment == NULL ? NULL : self->segment->wait);
    if (is_usual < 0)
        return NULL;
    if (!is_usual || self->gap == NULL || (PyObject *)self->segment->wait != args[0] || self->segment->wait->shared ||
        self->handed + 1 >= self->notable || self->size == NULL)
        return PyObject_CallMethod(object, "fetch_ends_slowly", "OO", args[0], args[1]);
    Pass *pass = self->segment;
    Span *gap = self->gap;
    Py_INCREF(pass);
    Py_INCREF(gap);
    int failed = count_batch(pass, end, self->size, args[1]);
    self->handed++;
    if (!failed && gap != pass->tree->root && pass->state->current == pass->tree->root) {
        ns_t at = read_clock();
        failed = CLOCK_FAILED(at);
        gap->t0 = at;
        SET(pass->state->current, gap);
    }
    Py_DECREF(pass);
    Py_DECREF(gap);
    if (failed)
        return NULL;
    return Py_NewRef(Py_None);
}

/* ---- the number of samples in a usual batch ----------------------------------------------------------------------------- */

/* Return the shape of a thing as a new tuple, or NULL without an exception if it has none; *failed is set on an exception. */
static PyObject *shape_of(PyObject *thing, int *failed)
{
    PyObject *shape = PyObject_GetAttr(thing, s_shape);
    if (shape == NULL) {
        *failed = !PyErr_ExceptionMatches(PyExc_AttributeError);
        if (!*failed)
            PyErr_Clear();
        return NULL;
    }
    if (!PyTuple_Check(shape))
        Py_CLEAR(shape);
    return shape;
}

/* Return the first dimension of inputs and labels that agree; see _usual in batch_size.py. NULL without an exception: unknown. */
static PyObject *usual_size(PyObject *first, PyObject *second, int *failed)
{
    PyObject *size = NULL, *labels = NULL, *inputs = shape_of(first, failed);
    if (inputs != NULL && (labels = shape_of(second, failed)) != NULL && PyTuple_Size(labels) == 1 && PyTuple_Size(inputs) > 1) {
        PyObject *found = PyTuple_GetItem(inputs, 0);
        if (PyLong_CheckExact(found)) {
            int is_same = PyObject_RichCompareBool(found, PyTuple_GetItem(labels, 0), Py_EQ);
            *failed = is_same < 0;
            if (is_same > 0) {
                Py_INCREF(found);
                size = found;
            }
        }
    }
    Py_XDECREF(inputs);
    Py_XDECREF(labels);
    return size;
}

/* The batch's size; `self` is the function in Python that knows every kind of batch, and judges what an attribute raised. */
static PyObject *batch_size(PyObject *self, PyObject *item)
{
    PyObject *size = NULL, *first = NULL, *second = NULL, *kind, *error, *traceback;
    int failed = 0;
    if (PyTuple_CheckExact(item) && PyTuple_Size(item) == 2) {
        first = PyTuple_GetItem(item, 0);
        second = PyTuple_GetItem(item, 1);
    } else if (PyList_CheckExact(item) && PyList_Size(item) == 2) {
        first = PyList_GetItem(item, 0);
        second = PyList_GetItem(item, 1);
    }
    if (first != NULL && second != NULL) {
        Py_INCREF(first); /* a shape may be a property, and change the list */
        Py_INCREF(second);
        size = usual_size(first, second, &failed);
        Py_DECREF(first);
        Py_DECREF(second);
    }
    if (size != NULL || !failed)
        return size != NULL ? size : PyObject_CallFunctionObjArgs(self, item, NULL);
    PyErr_Fetch(&kind, &error, &traceback);
    PyErr_NormalizeException(&kind, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    size = PyObject_CallFunctionObjArgs(self, item, error, NULL);
    Py_XDECREF(kind);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return size;
}

/* ---- the hooks that torch calls ---------------------------------------------------------------------------------------- */

static PyObject *fast_path_add(PyObject *object, PyObject *args)
{
    FastPath *self = (FastPath *)object;
    PyObject *before, *after, *segment;
    if (!PyArg_ParseTuple(args, "OOO", &before, &after, &segment))
        return NULL;
    if (!PyObject_TypeCheck(before, span_type) || ((Span *)before)->tree == NULL ||
        !PyObject_TypeCheck(after, span_type) || ((Span *)after)->tree == NULL ||
        (segment != Py_None && !PyObject_TypeCheck(segment, pass_type))) {
        PyErr_SetString(PyExc_TypeError, "a transition leads from a span to a span, in a pass or None");
        return NULL;
    }
    PyObject *found = PyTuple_Pack(2, after, segment);
    if (self->known == NULL)
        self->known = PyDict_New();
    int failed = found == NULL || self->known == NULL || PyDict_SetItem(self->known, before, found);
    Py_XDECREF(found);
    if (failed)
        return NULL;
    SET(self->expected, before);
    SET(self->span, after);
    SET(self->segment, segment == Py_None ? NULL : segment);
    self->is_on_device = NONE_OR(((Span *)before)->tree->device) != NULL || NONE_OR(((Span *)after)->tree->device) != NULL;
    return Py_NewRef(Py_None);
}

static PyObject *fast_path_forget(PyObject *object, PyObject *unused)
{
    FastPath *self = (FastPath *)object;
    (void)unused;
    SET(self->expected, NULL);
    SET(self->span, NULL);
    SET(self->segment, NULL);
    SET(self->known, NULL);
    return Py_NewRef(Py_None);
}

/* Return 1 if the transition from the current span is known, and select it; 0 if the observer has to decide. */
static int is_known(FastPath *fast, Place *place)
{
    if (fast == NULL || !is_mine(place) || place->current == NULL)
        return 0;
    Span *current = place->current;
    if (current == fast->expected)
        return 1;
    if (fast->known == NULL)
        return 0;
    PyObject *found = PyDict_GetItemWithError(fast->known, (PyObject *)current);
    if (found == NULL) {
        PyErr_Clear();
        return 0;
    }
    PyObject *segment = PyTuple_GetItem(found, 1);
    SET(fast->span, PyTuple_GetItem(found, 0));
    SET(fast->segment, segment == Py_None ? NULL : segment);
    SET(fast->expected, current);
    return 1;
}

static int mark(Span *span, const char *which)
{
    PyObject *answer = PyObject_CallMethod((PyObject *)span, which, NULL);
    Py_XDECREF(answer);
    return answer == NULL ? -1 : 0;
}

static PyObject *take_slow_way(Hook *self, FastPath *fast)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(self->slow, (PyObject *)fast, NULL);
    Py_XDECREF(answer);
    if (answer == NULL)
        return NULL;
    return Py_NewRef(Py_None);
}

/* Begin a phase, and end the gap before it, with one reading of the clock. */
static PyObject *begin_phase(Hook *self, FastPath *fast)
{
    Place *place = self->state;
    ns_t at = read_clock();
    if (CLOCK_FAILED(at))
        return NULL;
    Span *span = fast->span, *current = place->current;
    int failed = 0;
    Py_INCREF(span); /* marks run Python code, which may change the fast path */
    if (current != span->parent) {
        Py_INCREF(current);
        failed = record(current, at - current->t0) || (fast->is_on_device && mark(current, "mark_end"));
        Py_DECREF(current);
    }
    if (!failed) {
        SET(place->current, span);
        span->t0 = at;
        failed = fast->is_on_device && mark(span, "mark_begin");
    }
    Py_DECREF(span);
    if (failed)
        return NULL;
    return Py_NewRef(Py_None);
}

/* End a phase, and begin the gap after it; `ends_step`: the loop's step ends with it. */
static int end_phase(Hook *self, FastPath *fast, ns_t end, int ends_step)
{
    Place *place = self->state;
    Span *span = fast->span, *current = place->current;
    Pass *pass = fast->segment;
    int failed;
    Py_INCREF(span);
    Py_INCREF(current);
    Py_XINCREF(pass);
    failed = record(current, end - current->t0) || (fast->is_on_device && mark(current, "mark_end"));
    if (!failed && pass != NULL && !(failed = !is_whole(pass))) {
        Tree *tree = pass->tree;
        pass->handed_at = end;
        if (ends_step) {
            ns_t duration = end - pass->step_started;
            Py_ssize_t waiting = NONE_OR(tree->device) == NULL ? 0 : PyObject_Size(tree->pending);
            failed = waiting < 0 || (waiting > 0 && mark((Span *)tree, "read_device")) || record(tree->step, duration);
            tree->steps++;
            pass->step_started = end;
            if (!failed && duration > tree->limit) { /* the clocks of all that is open are stopped meanwhile */
                PyObject *spent = PyObject_CallMethod((PyObject *)tree, "exceed", "LL", (long long)duration, (long long)end);
                failed = spent == NULL;
                end += failed ? 0 : (ns_t)PyLong_AsLongLong(spent);
                Py_XDECREF(spent);
            }
        }
    }
    if (!failed) {
        SET(place->current, span);
        span->t0 = end;
        failed = fast->is_on_device && span != current->parent && mark(span, "mark_begin");
    }
    Py_DECREF(span);
    Py_DECREF(current);
    Py_XDECREF(pass);
    return failed ? -1 : 0;
}

static PyObject *hook_begins(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Hook *self = (Hook *)object;
    (void)args, (void)count;
    return is_known(self->fast, self->state) ? begin_phase(self, self->fast) : take_slow_way(self, self->fast);
}

static PyObject *end_or_take_slow_way(Hook *self, int ends_step)
{
    ns_t end = read_clock();
    if (CLOCK_FAILED(end))
        return NULL;
    if (!is_known(self->fast, self->state))
        return take_slow_way(self, self->fast);
    if (end_phase(self, self->fast, end, ends_step))
        return NULL;
    return Py_NewRef(Py_None);
}

static PyObject *hook_ends(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    return end_or_take_slow_way((Hook *)object, 0);
}

static PyObject *hook_ends_step(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    (void)args, (void)count;
    return end_or_take_slow_way((Hook *)object, 1);
}

/* Return 1 if this is the hooked module; a replica of it (DataParallel) has our hooks, too, and is ignored. */
static int is_hooked(Hook *self, PyObject *module)
{
    PyObject *hooked = PyObject_CallFunctionObjArgs(self->hooked, NULL);
    Py_XDECREF(hooked);
    return hooked == NULL ? -1 : hooked == module;
}

/* Return the answer of an attribute or a call as 1 or 0, or -1 with an exception set. It takes the reference. */
static int is_true(PyObject *answer)
{
    int is = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return is;
}

static PyObject *hook_forward_begins(PyObject *object, PyObject *module)
{
    Hook *self = (Hook *)object;
    int trains = is_true(PyObject_GetAttr(module, s_training));
    int learns = trains > 0 ? is_true(PyObject_CallFunctionObjArgs(self->takes_gradients, NULL)) : trains;
    if (learns < 0)
        return NULL;
    FastPath *fast = learns ? self->fast : self->other;
    if (is_known(fast, self->state))
        return begin_phase(self, fast);
    int is = is_hooked(self, module);
    if (is < 0)
        return NULL;
    if (is)
        return take_slow_way(self, fast);
    return Py_NewRef(Py_None);
}

static PyObject *hook_forward_ends(PyObject *object, PyObject *module)
{
    Hook *self = (Hook *)object;
    int is = is_known(self->fast, self->state) ? 1 : is_hooked(self, module);
    if (is < 0)
        return NULL;
    return is ? end_or_take_slow_way(self, 0) : (Py_INCREF(Py_None), Py_None);
}

static int hook_init(PyObject *object, PyObject *args, PyObject *unused)
{
    Hook *self = (Hook *)object;
    PyObject *fast, *other, *state, *slow, *hooked = Py_None, *takes_gradients = Py_None;
    (void)unused;
    if (!PyArg_ParseTuple(args, "O!O!O!O|OO", fast_path_type, &fast, fast_path_type, &other, place_type, &state, &slow, &hooked,
                          &takes_gradients))
        return -1;
    SET(self->fast, fast);
    SET(self->other, other);
    SET(self->state, state);
    SET(self->slow, slow);
    SET(self->hooked, hooked);
    SET(self->takes_gradients, takes_gradients);
    return 0;
}

/* ---- the module --------------------------------------------------------------------------------------------------------- */

#define LINKED(object, field) {#field, get_link, set_link, NULL, &link_##object##_##field}
#define HELD(object, field) {#field, T_OBJECT, offsetof(object, field), 0, NULL}
#define NUMBER(object, field) {#field, T_LONGLONG, offsetof(object, field), 0, NULL}
#define FLAG(object, field) {#field, T_BOOL, offsetof(object, field), 0, NULL}
#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMemberDef place_members[] = {HELD(Place, look_up), {"thread", T_ULONG, offsetof(Place, thread), 0, NULL},
                                      {"is_owner", T_BOOL, offsetof(Place, is_owner), READONLY, NULL}, {NULL}};
static PyGetSetDef place_links[] = {LINKED(Place, current), {NULL}};
static PyMethodDef place_methods[] = {{"phase", place_phase, METH_O, NULL}, {"is_mine", place_is_mine, METH_NOARGS, NULL}, {NULL}};

static PyMemberDef span_members[] = {HELD(Span, name), HELD(Span, children), HELD(Span, timing), NUMBER(Span, t0),
                                     {"depth", T_INT, offsetof(Span, depth), 0, NULL},
                                     {"shared", T_INT, offsetof(Span, shared), 0, NULL}, {NULL}};
static PyGetSetDef span_links[] = {LINKED(Span, tree), LINKED(Span, state), LINKED(Span, parent),
                                   {"n", span_get_n, span_set_n, NULL, NULL},
                                   {"taken", span_get_taken, span_set_taken, NULL, NULL}, {NULL}};
static PyMethodDef span_methods[] = {{"__enter__", span_enter, METH_NOARGS, NULL},
                                     {"__exit__", FAST(span_exit), METH_FASTCALL, NULL},
                                     {"record", span_record, METH_O, NULL},
                                     {"recent_ns", span_recent_ns, METH_O, NULL},
                                     {"take_new", span_take_new, METH_NOARGS, NULL}, {NULL}};

static PyMemberDef tree_members[] = {HELD(Tree, device), HELD(Tree, pending), HELD(Tree, samples), NUMBER(Tree, limit),
                                     NUMBER(Tree, steps), FLAG(Tree, cold), FLAG(Tree, is_inference), {NULL}};
static PyGetSetDef tree_links[] = {LINKED(Tree, root), LINKED(Tree, step), {NULL}};

static PyMemberDef pass_members[] = {HELD(Pass, samples), NUMBER(Pass, step_started), NUMBER(Pass, handed_at),
                                     FLAG(Pass, in_step), FLAG(Pass, closed), {NULL}};
static PyGetSetDef pass_links[] = {LINKED(Pass, state), LINKED(Pass, tree), LINKED(Pass, wait), {NULL}};
static PyMethodDef pass_methods[] = {{"begin_wait", pass_begin_wait, METH_NOARGS, NULL},
                                     {"end_wait", FAST(pass_end_wait), METH_FASTCALL, NULL}, {NULL}};

static PyMemberDef feed_members[] = {HELD(Feed, ignored), HELD(Feed, size), NUMBER(Feed, handed), NUMBER(Feed, notable), {NULL}};
static PyGetSetDef feed_links[] = {LINKED(Feed, before), LINKED(Feed, gap), LINKED(Feed, segment), {NULL}};
static PyMethodDef feed_methods[] = {{"fetch_begins", feed_fetch_begins, METH_NOARGS, NULL},
                                     {"fetch_ends", FAST(feed_fetch_ends), METH_FASTCALL, NULL}, {NULL}};

static PyMethodDef fast_path_methods[] = {{"add", fast_path_add, METH_VARARGS, NULL},
                                          {"clear", fast_path_forget, METH_NOARGS, NULL}, {NULL}};

static PyMethodDef hook_methods[] = {{"begins", FAST(hook_begins), METH_FASTCALL, NULL},
                                     {"ends", FAST(hook_ends), METH_FASTCALL, NULL},
                                     {"ends_step", FAST(hook_ends_step), METH_FASTCALL, NULL},
                                     {"forward_begins", hook_forward_begins, METH_O, NULL},
                                     {"forward_ends", hook_forward_ends, METH_O, NULL}, {NULL}};

static PyTypeObject *add_type(PyObject *module, const char *name, int size, PyType_Slot *slots)
{
    unsigned int flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
    PyType_Spec spec = {name, size, 0, flags, slots};
    PyObject *type = PyType_FromSpec(&spec);
    const char *short_name = strrchr(name, '.') + 1;
    if (type == NULL || PyModule_AddObjectRef(module, short_name, type))
        return NULL;
    return (PyTypeObject *)type; /* held for good */
}

#define SLOTS(kind, ...)                                                                                          \
    (PyType_Slot[]){{Py_tp_traverse, kind##_traverse}, {Py_tp_clear, kind##_clear}, {Py_tp_dealloc, kind##_dealloc}, \
                    __VA_ARGS__, {0, NULL}}
#define TYPE(module, name, kind, object, ...)                                                                      \
    ((kind##_type = add_type(module, "profiler.measure.compiled." name, sizeof(object), SLOTS(kind, __VA_ARGS__))) == NULL)

static PyObject *module_now(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    ns_t at = read_clock();
    return CLOCK_FAILED(at) ? NULL : PyLong_FromLongLong(at);
}

static PyObject *module_use_clock(PyObject *module, PyObject *clock)
{
    (void)module;
    replace(&given_clock, clock == Py_None ? NULL : clock);
    return Py_NewRef(Py_None);
}

static PyMethodDef batch_size_method = {"batch_size", batch_size, METH_O, NULL};

static PyObject *module_sized_by(PyObject *module, PyObject *function)
{
    (void)module;
    return PyCFunction_New(&batch_size_method, function);
}

static PyMethodDef module_methods[] = {{"now", module_now, METH_NOARGS, NULL},
                                       {"use_clock", module_use_clock, METH_O, NULL},
                                       {"sized_by", module_sized_by, METH_O, NULL}, {NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "compiled", "The hot path in C; see reference.py.", -1,
                                        module_methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_compiled(void)
{
    PyObject *module = PyModule_Create(&definition);
    s_shape = PyUnicode_InternFromString("shape");
    s_training = PyUnicode_InternFromString("training");
    if (module == NULL || s_shape == NULL || s_training == NULL || PyModule_AddIntConstant(module, "LAYOUT", LAYOUT) ||
        TYPE(module, "Place", place, Place, {Py_tp_members, place_members}, {Py_tp_getset, place_links},
             {Py_tp_init, place_init}, {Py_tp_methods, place_methods}) ||
        TYPE(module, "HotSpan", span, Span, {Py_tp_members, span_members}, {Py_tp_getset, span_links},
             {Py_tp_init, span_init}, {Py_tp_methods, span_methods}) ||
        TYPE(module, "HotTree", tree, Tree, {Py_tp_members, tree_members}, {Py_tp_getset, tree_links}) ||
        TYPE(module, "HotPass", pass, Pass, {Py_tp_members, pass_members}, {Py_tp_getset, pass_links},
             {Py_tp_methods, pass_methods}) ||
        TYPE(module, "FastPath", fast_path, FastPath, {Py_tp_methods, fast_path_methods}) ||
        TYPE(module, "HotFeed", feed, Feed, {Py_tp_members, feed_members}, {Py_tp_getset, feed_links},
             {Py_tp_methods, feed_methods}) ||
        TYPE(module, "Hook", hook, Hook, {Py_tp_init, hook_init}, {Py_tp_methods, hook_methods})) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
