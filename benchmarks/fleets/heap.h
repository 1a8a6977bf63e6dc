/* A binary heap of timelines with positions, so that each can be moved or removed.
 * The first one has the lowest key; of equal keys the lowest tie, then the lowest serial number. */
#ifndef BBCACHE_HEAP_H
#define BBCACHE_HEAP_H

#include <stdint.h>
#include <stdlib.h>

typedef struct {
    int32_t *items;    /* timelines, in the order of the heap */
    int32_t *position; /* of each timeline; -1 if it is not in the heap */
    double *key;
    double *tie;
    int64_t *serial;
    int64_t next_serial;
    int32_t count;
} Heap;

static void heap_init(Heap *heap, int32_t timelines) {
    heap->items = malloc(sizeof(int32_t) * (size_t)(timelines + 1));
    heap->position = malloc(sizeof(int32_t) * (size_t)timelines);
    heap->key = calloc((size_t)timelines, sizeof(double));
    heap->tie = calloc((size_t)timelines, sizeof(double));
    heap->serial = calloc((size_t)timelines, sizeof(int64_t));
    heap->next_serial = 0;
    heap->count = 0;
    for (int32_t each = 0; each < timelines; each++)
        heap->position[each] = -1;
}

static void heap_free(Heap *heap) {
    free(heap->items);
    free(heap->position);
    free(heap->key);
    free(heap->tie);
    free(heap->serial);
}

static int heap_has(const Heap *heap, int32_t item) { return heap->position[item] >= 0; }

static int heap_before(const Heap *heap, int32_t a, int32_t b) {
    if (heap->key[a] != heap->key[b])
        return heap->key[a] < heap->key[b];
    if (heap->tie[a] != heap->tie[b])
        return heap->tie[a] < heap->tie[b];
    return heap->serial[a] < heap->serial[b];
}

static void heap_place(Heap *heap, int32_t at, int32_t item) {
    heap->items[at] = item;
    heap->position[item] = at;
}

static void heap_up(Heap *heap, int32_t at) {
    int32_t item = heap->items[at];
    while (at > 0) {
        int32_t parent = (at - 1) / 2;
        if (!heap_before(heap, item, heap->items[parent]))
            break;
        heap_place(heap, at, heap->items[parent]);
        at = parent;
    }
    heap_place(heap, at, item);
}

static void heap_down(Heap *heap, int32_t at) {
    int32_t item = heap->items[at];
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && heap_before(heap, heap->items[child + 1], heap->items[child]))
            child++;
        if (!heap_before(heap, heap->items[child], item))
            break;
        heap_place(heap, at, heap->items[child]);
        at = child;
    }
    heap_place(heap, at, item);
}

/* Add an item with the key, the tie and the serial number that it has. */
static void heap_restore(Heap *heap, int32_t item) {
    if (!heap_has(heap, item))
        heap_place(heap, heap->count++, item);
    heap_up(heap, heap->position[item]);
    heap_down(heap, heap->position[item]);
}

/* Add an item, or give it another key; it comes after those of the same key and tie. */
static void heap_put(Heap *heap, int32_t item, double key, double tie) {
    heap->key[item] = key;
    heap->tie[item] = tie;
    heap->serial[item] = ++heap->next_serial;
    heap_restore(heap, item);
}

/* Remove an item, if it is there. */
static void heap_remove(Heap *heap, int32_t item) {
    int32_t at = heap->position[item];
    if (at < 0)
        return;
    heap->position[item] = -1;
    heap->count--;
    if (at < heap->count) {
        int32_t last = heap->items[heap->count];
        heap_place(heap, at, last);
        heap_up(heap, at);
        heap_down(heap, heap->position[last]);
    }
}

static int32_t heap_first(const Heap *heap) { return heap->count ? heap->items[0] : -1; }

#endif
