/* The rule of bbcache.eviction.ReturnRate in C: the same arithmetic in the same order, so that both
 * decide alike to the last bit. tests/benchmarks/test_fleets.py compares them. */
#ifndef BBCACHE_RULE_H
#define BBCACHE_RULE_H

#include <math.h>
#include <string.h>

#include "heap.h"

enum { VISITS = 4, REGULARITIES = 5, CLOCKS = 4, LENGTHS = 2, FAMILY = CLOCKS * LENGTHS };
enum { ROWS = VISITS * REGULARITIES * FAMILY, MAX_BINS = 64 };
static const double BRIEF_S = 1800.0; /* typical sleeps up to here are of the first length */
static const double UNKNOWN_SLEEP_S = 3600.0, HALF_LIFE_S = 7 * 86400.0, REFRESH_S = 3600.0, TRUST = 8.0;
static const double MU_STEPS = 3000.0, MOST_DEVIATION = 4.0;
/* Levels of scores: 32 for each power of two. */
static const double LEVELS = 32, LEVEL_ONE = 1600, LEAST_GAIN = 1e-300;
static const int UNHELD_STEP = 4; /* bins between two looks at a sleeper without an archive */
static const double NOTABLE_LEVELS = 6; /* after such a change an entry is looked at again */

/* What is known of one timeline (bbcache.eviction.habits). */
typedef struct {
    uint16_t mu;
    uint8_t deviation, count;
    uint8_t hours[24];
} Habits;

typedef struct {
    double returned[MAX_BINS], exposed[MAX_BINS], log_gain[MAX_BINS], stale_at_s;
    int32_t next_look[MAX_BINS]; /* the next bin that differs notably in gain */
} Row;

/* When to look at a sleep again, to the second (bbcache.eviction.timers). */
typedef struct {
    int64_t second, serial, sleep;
    int32_t timeline;
} Timer;

typedef struct {
    Timer *heap, *due;
    int64_t count, room, due_room, next_serial;
} Timers;

typedef struct {
    Habits *habits;
    int64_t *stop_s; /* in whole seconds; -1 while it runs */
    uint8_t *is_asleep, *is_counted, *is_known;
    const uint8_t *is_sampled; /* from which timelines to learn if there are many */
    int32_t known, all_counted;
    int64_t *sleep; /* the number of the present sleep, by which old timers are known */
    int32_t *row, *bin;
    double *scale_s, *stopped_s;
    Row *rows;
    double edges[MAX_BINS + 1], widths[MAX_BINS], priors[REGULARITIES + 1][MAX_BINS];
    int32_t bins;
    double weight, begin_s, next_weight_s, now_s;
    Timers timers;
} Rule;

static int timer_before(const Timer *a, const Timer *b) {
    return a->second != b->second ? a->second < b->second : a->serial < b->serial;
}

static void timers_add(Timers *timers, double due_s, int32_t timeline, int64_t sleep) {
    if (timers->count == timers->room) {
        timers->room = 2 * timers->room + 1024;
        timers->heap = realloc(timers->heap, (size_t)timers->room * sizeof(Timer));
    }
    Timer timer = {(int64_t)ceil(due_s), timers->next_serial++, sleep, timeline};
    int64_t at = timers->count++;
    for (; at > 0 && timer_before(&timer, &timers->heap[(at - 1) / 2]); at = (at - 1) / 2)
        timers->heap[at] = timers->heap[(at - 1) / 2];
    timers->heap[at] = timer;
}

static Timer timers_pop(Timers *timers) {
    Timer first = timers->heap[0], last = timers->heap[--timers->count];
    int64_t at = 0;
    for (int64_t child; (child = 2 * at + 1) < timers->count; at = child) {
        if (child + 1 < timers->count && timer_before(&timers->heap[child + 1], &timers->heap[child]))
            child++;
        if (!timer_before(&timers->heap[child], &last))
            break;
        timers->heap[at] = timers->heap[child];
    }
    timers->heap[at] = last;
    return first;
}

/* Take out what is due; returns how many are in `due`. */
static int64_t timers_take(Timers *timers, double now_s) {
    int64_t count = 0;
    while (timers->count && (double)timers->heap[0].second <= now_s) {
        if (count == timers->due_room) {
            timers->due_room = 2 * timers->due_room + 1024;
            timers->due = realloc(timers->due, (size_t)timers->due_room * sizeof(Timer));
        }
        timers->due[count++] = timers_pop(timers);
    }
    return count;
}

static double rule_prior(double middle, double steepness) {
    double power = pow(middle, steepness);
    return steepness / middle * power / (1 + power);
}

static void rule_make_bins(Rule *rule) {
    static const double fine[] = {0.8, 0.86, 0.92, 0.96, 1.0, 1.04, 1.08, 1.16, 1.3, 1.5};
    static const double steepness[REGULARITIES + 1] = {12.0, 5.0, 2.2, 1.3, 0.9, 0.7};
    int32_t count = 0;
    rule->edges[count++] = 0.0;
    for (double edge = 0.02; edge < 0.79; edge *= 1.36)
        rule->edges[count++] = edge;
    for (int each = 0; each < 10; each++)
        rule->edges[count++] = fine[each];
    for (double edge = 1.5 * 1.36; edge < 3000; edge *= 1.36)
        rule->edges[count++] = edge;
    rule->edges[count] = 4 * rule->edges[count - 1] * 1.36;
    rule->bins = count;
    for (int32_t bin = 0; bin < count; bin++) {
        double low = rule->edges[bin], high = rule->edges[bin + 1];
        rule->widths[bin] = high - low;
        for (int each = 0; each <= REGULARITIES; each++)
            rule->priors[each][bin] = rule_prior(bin ? (low + high) / 2 : high / 2, steepness[each]);
    }
}

static void rule_init(Rule *rule, int32_t timelines, const uint8_t *is_sampled, int32_t all_counted) {
    size_t count = (size_t)timelines;
    memset(rule, 0, sizeof *rule);
    rule->habits = calloc(count, sizeof(Habits));
    rule->stop_s = malloc(count * sizeof(int64_t));
    for (size_t each = 0; each < count; each++)
        rule->stop_s[each] = -1;
    rule->is_asleep = calloc(count, 1);
    rule->sleep = calloc(count, sizeof(int64_t));
    rule->is_counted = calloc(count, 1);
    rule->is_known = calloc(count, 1);
    rule->is_sampled = is_sampled;
    rule->all_counted = all_counted;
    rule->row = calloc(count, sizeof(int32_t));
    rule->bin = calloc(count, sizeof(int32_t));
    rule->scale_s = calloc(count, sizeof(double));
    rule->stopped_s = calloc(count, sizeof(double));
    rule->rows = calloc(ROWS, sizeof(Row));
    for (int each = 0; each < ROWS; each++)
        rule->rows[each].stale_at_s = -INFINITY;
    rule->weight = 1.0;
    rule->begin_s = NAN;
    rule->next_weight_s = -INFINITY;
    rule_make_bins(rule);
}

static void rule_free(Rule *rule) {
    free(rule->habits);
    free(rule->stop_s);
    free(rule->is_asleep);
    free(rule->sleep);
    free(rule->is_counted);
    free(rule->is_known);
    free(rule->row);
    free(rule->bin);
    free(rule->scale_s);
    free(rule->stopped_s);
    free(rule->rows);
    free(rule->timers.heap);
    free(rule->timers.due);
}

static double rule_deviation(uint8_t code) { return pow(code / 255.0, 2.0) * MOST_DEVIATION; }

/* End a sleep and learn from it. */
static void rule_learn(Habits *habits, int64_t stop_s, double now_s) {
    double slept_s = now_s - (double)stop_s, x = slept_s > 1.0 ? log(slept_s) : 0.0;
    double mu = x, deviation = 0.8;
    if (habits->count) {
        int count = habits->count;
        mu = habits->mu / MU_STEPS;
        deviation = rule_deviation(habits->deviation);
        double difference = x - mu;
        deviation += fmax(1.0 / 8, 1.0 / (count + 2)) * (fmin(fabs(difference), MOST_DEVIATION) - deviation);
        mu += fmax(1.0 / 8, 1.0 / (count + 1)) * difference;
    }
    habits->deviation = (uint8_t)nearbyint(sqrt(deviation / MOST_DEVIATION) * 255);
    habits->mu = (uint16_t)nearbyint(mu * MU_STEPS);
    if (habits->count < 255)
        habits->count++;
    uint8_t *hour = &habits->hours[(int64_t)((now_s - fmod(now_s, 3600.0)) / 3600.0) % 24];
    if (*hour > 240)
        for (int each = 0; each < 24; each++)
            habits->hours[each] /= 2;
    *hour += 8;
}

/* Whether the timeline often starts at the hours that come now: 1 rarely, 3 often. */
static int rule_clock(const Habits *habits, double now_s, double typical_s) {
    int total = 0;
    for (int each = 0; each < 24; each++)
        total += habits->hours[each];
    if (total < 48)
        return 0;
    double window = fmin(fmax(2 * typical_s / 3600.0, 1.0), 6.0);
    double begin = now_s / 3600.0, end = begin + window;
    int64_t first = (int64_t)begin, last = (int64_t)end;
    double starts = habits->hours[first % 24] * ((double)(first + 1) - begin) +
                    habits->hours[last % 24] * (end - (double)last);
    for (int64_t hour = first + 1; hour < last; hour++)
        starts += habits->hours[hour % 24];
    double share = (starts / total) / (window / 24);
    return share < 0.3 ? 1 : share < 1.7 ? 2 : 3;
}

static int rule_regularity(const Habits *habits) {
    static const double cuts[] = {0.04, 0.2, 0.6, 1.1};
    if (habits->count < 2)
        return 3;
    int level = 0;
    while (level < 4 && rule_deviation(habits->deviation) >= cuts[level])
        level++;
    return level;
}

static void rule_classify(Rule *rule, int32_t timeline, double now_s) {
    const Habits *habits = &rule->habits[timeline];
    int count = habits->count, visits = count < 2 ? count : count < 5 ? 2 : 3, clock = 0;
    rule->scale_s[timeline] = UNKNOWN_SLEEP_S;
    if (count) {
        rule->scale_s[timeline] = exp(habits->mu / MU_STEPS);
        clock = rule_clock(habits, now_s, rule->scale_s[timeline]);
    }
    int kind = (visits * REGULARITIES + rule_regularity(habits)) * CLOCKS + clock;
    rule->row[timeline] = kind * LENGTHS + (rule->scale_s[timeline] >= BRIEF_S);
}

/* Compute what each bin of a row earns: by its own counts, where they are few by those of all
 * lengths, of all clocks as well, and by the prior. */
static void rule_compute(Rule *rule, int32_t number) {
    Row *row = &rule->rows[number];
    static const int sizes[] = {FAMILY, LENGTHS, 1}; /* of the groups of rows that it is in */
    int visits = number / (REGULARITIES * FAMILY), regularity = number / FAMILY % REGULARITIES;
    const double *prior = rule->priors[visits ? regularity : REGULARITIES];
    double scale = 1 / rule->weight, stay[MAX_BINS], spend[MAX_BINS];
    for (int32_t bin = 0; bin < rule->bins; bin++) {
        double rate = prior[bin];
        for (int group = 0; group < 3; group++) {
            const Row *rows = &rule->rows[number - number % sizes[group]];
            double returned = 0, exposed = 0;
            for (int each = 0; each < sizes[group]; each++) {
                returned += rows[each].returned[bin];
                exposed += rows[each].exposed[bin];
            }
            rate = (scale * returned + TRUST) / (scale * exposed + TRUST / rate);
        }
        stay[bin] = exp(-rate * rule->widths[bin]);
        spend[bin] = -expm1(-rate * rule->widths[bin]) / rate;
    }
    for (int32_t first = 0; first < rule->bins; first++) {
        double asleep = 1.0, spent = 0.0, best = 0.0;
        for (int32_t bin = first; bin < rule->bins; bin++) {
            spent += asleep * spend[bin];
            asleep *= stay[bin];
            double gain = (1.0 - asleep) / spent;
            if (gain > best)
                best = gain;
        }
        row->log_gain[first] = LEVELS * log2(fmax(best, LEAST_GAIN));
    }
    for (int32_t bin = 0; bin < rule->bins; bin++) {
        int32_t at = bin + 1;
        while (at < rule->bins && fabs(row->log_gain[at] - row->log_gain[bin]) < NOTABLE_LEVELS)
            at++;
        row->next_look[bin] = at;
    }
}

/* A row that was computed within the last hour. */
static Row *rule_fresh(Rule *rule, int32_t number) {
    Row *row = &rule->rows[number];
    if (rule->now_s >= row->stale_at_s) {
        rule_compute(rule, number);
        row->stale_at_s = rule->now_s + REFRESH_S;
    }
    return row;
}

/* The level of a sleeper's score: 32 for each power of two. */
static double rule_level(Rule *rule, int32_t timeline, double footprint) {
    Row *row = rule_fresh(rule, rule->row[timeline]);
    double cost = LEVELS * log2(rule->scale_s[timeline] * footprint);
    return fmax(1, trunc(row->log_gain[rule->bin[timeline]] - cost) + LEVEL_ONE);
}

/* Have a sleeper looked at again: each few bins, or when its score will have changed. */
static void rule_set_timer(Rule *rule, int32_t timeline, int is_held) {
    int32_t bin = rule->bin[timeline] + UNHELD_STEP;
    if (is_held)
        bin = rule_fresh(rule, rule->row[timeline])->next_look[rule->bin[timeline]];
    if (bin < rule->bins) {
        double due_s = rule->stopped_s[timeline] + rule->edges[bin] * rule->scale_s[timeline];
        timers_add(&rule->timers, due_s, timeline, rule->sleep[timeline]);
    }
}

static void rule_advance_weight(Rule *rule, double now_s) {
    rule->now_s = now_s;
    if (now_s < rule->next_weight_s)
        return;
    if (isnan(rule->begin_s))
        rule->begin_s = now_s;
    rule->weight = pow(2.0, (now_s - rule->begin_s) / HALF_LIFE_S);
    rule->next_weight_s = now_s + REFRESH_S;
}

/* Count a sleeper in the bins that it has slept through; returns its age. */
static double rule_passed(Rule *rule, int32_t timeline, double now_s) {
    double age = (now_s - rule->stopped_s[timeline]) / rule->scale_s[timeline];
    Row *row = &rule->rows[rule->row[timeline]];
    int32_t bin = rule->bin[timeline];
    for (; bin < rule->bins - 1 && rule->edges[bin + 1] <= age; bin++)
        if (rule->is_counted[timeline])
            row->exposed[bin] += rule->weight * rule->widths[bin];
    rule->bin[timeline] = bin;
    return age;
}

/* Lose sight of a sleeper; `is_return` says whether it has started. */
static void rule_left(Rule *rule, int32_t timeline, double now_s, int is_return) {
    if (rule->is_asleep[timeline] && rule->is_counted[timeline]) {
        double age = rule_passed(rule, timeline, now_s);
        int32_t bin = rule->bin[timeline];
        Row *row = &rule->rows[rule->row[timeline]];
        row->exposed[bin] += rule->weight * fmax(0.0, age - rule->edges[bin]);
        row->returned[bin] += is_return ? rule->weight : 0;
    }
    rule->is_asleep[timeline] = 0;
}

static void rule_started(Rule *rule, int32_t timeline, double now_s) {
    rule_left(rule, timeline, now_s, 1);
    if (rule->stop_s[timeline] >= 0)
        rule_learn(&rule->habits[timeline], rule->stop_s[timeline], now_s);
    rule->stop_s[timeline] = -1;
}

static void rule_stopped(Rule *rule, int32_t timeline, double now_s) {
    rule_left(rule, timeline, now_s, 0);
    rule->known += !rule->is_known[timeline];
    rule->is_known[timeline] = 1;
    rule->is_counted[timeline] = rule->known <= rule->all_counted || rule->is_sampled[timeline];
    rule->is_asleep[timeline] = 1;
    rule->sleep[timeline]++;
    rule->stop_s[timeline] = (int64_t)now_s;
    rule->stopped_s[timeline] = now_s;
    rule->bin[timeline] = 0;
    rule_classify(rule, timeline, now_s);
    if (rule->is_counted[timeline])
        rule_set_timer(rule, timeline, 0);
}

#endif
