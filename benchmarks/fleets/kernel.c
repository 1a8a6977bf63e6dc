/* One pass over the events of a fleet under one policy. See benchmarks/fleets/kernel.py.
 *
 * A timeline stops (an archive can be built), sleeps, and starts (one get; the archive is outdated
 * then). The policies other than the rule are as published: SIEVE (NSDI '24), S3-FIFO (SOSP '23),
 * GDSF (Cherkasova 1998), Belady (1966). */
#include "heap.h"
#include "rule.h"

enum { START = 0, STOP = 1, DELETE = 2 };
enum { SKIP, OLDEST, SIEVE, S3FIFO, GDSF, BELADY, ORACLE, RULE };
enum { GETS, HITS, SIZE_ASKED, SIZE_HIT, COST_ASKED, COST_SAVED, BUILDS, VAIN, EVICTED, DECLINED };
static const double NEVER = 1e17;
static const int32_t LOG_BUILT = -1, LOG_DECLINED = -2;

typedef struct {
    int64_t events;
    const double *times_s;
    const int8_t *kinds;
    const int32_t *timelines;
    const double *returns_s; /* of each stop */
    int32_t count;           /* of timelines */
    const double *sizes, *costs;
    const uint8_t *is_sampled; /* whether the rule learns from a timeline if there are many */
    int32_t draws;             /* of the true law of sleeping, for each stop */
    const float *sleeps;       /* the draws, each stop's in order */
    const int64_t *draw_rows;  /* of each event */
} Fleet;

typedef struct {
    double max_entries, max_size; /* infinite for no limit */
    double per_entry, per_size;   /* the share of the cache that an entry, or a unit of size, takes */
    double ghosts;                /* evicted entries that S3-FIFO remembers */
    double warm_s;                /* what comes earlier is not counted */
    int32_t all_counted;          /* timelines that the rule learns from without a sample */
} Options;

/* Queues of SIEVE and S3-FIFO, as linked lists; a timeline is in one of them at most. */
typedef struct {
    int32_t *next, *previous, head[2], tail[2], length[2], hand;
    uint8_t *queue; /* 0 for none, else 1 + the queue */
    uint8_t *is_visited;
    int32_t *left_at, clock; /* the turn at which a timeline left S3-FIFO's small queue */
} Queues;

typedef struct {
    const Fleet *fleet;
    const Options *options;
    int policy;
    double *totals;
    int32_t *log; /* of each stop: the victims, then LOG_BUILT or LOG_DECLINED */
    int64_t log_length;
    uint8_t *is_held, *is_in_count; /* built when it counted */
    double entries, size;           /* held now */
    double *stopped_s;
    Heap ranking; /* what is held, the next victim first */
    Queues queues;
    int32_t *gets; /* of each timeline */
    double inflation;
    Heap ages;          /* of the oracle: when each entry is scored again */
    int64_t *draws_row; /* of each sleeper */
    Rule rule;
    int is_in;
    int32_t *chosen;
} Simulation;

static double footprint(const Simulation *s, int32_t timeline) {
    return fmax(s->options->per_entry, s->fleet->sizes[timeline] * s->options->per_size);
}

static int fits(const Simulation *s, int32_t timeline) {
    return s->entries + 1 <= s->options->max_entries &&
           s->size + s->fleet->sizes[timeline] <= s->options->max_size;
}

static void queue_push(Queues *q, int which, int32_t item) {
    q->previous[item] = -1;
    q->next[item] = q->head[which];
    if (q->head[which] >= 0)
        q->previous[q->head[which]] = item;
    q->head[which] = item;
    if (q->tail[which] < 0)
        q->tail[which] = item;
    q->length[which]++;
    q->queue[item] = (uint8_t)(which + 1);
}

static void queue_remove(Queues *q, int32_t item) {
    int which = q->queue[item] - 1;
    if (which < 0)
        return;
    if (q->hand == item)
        q->hand = q->previous[item];
    if (q->previous[item] >= 0)
        q->next[q->previous[item]] = q->next[item];
    else
        q->head[which] = q->next[item];
    if (q->next[item] >= 0)
        q->previous[q->next[item]] = q->previous[item];
    else
        q->tail[which] = q->previous[item];
    q->length[which]--;
    q->queue[item] = 0;
}

static void drop(Simulation *s, int32_t timeline) {
    s->is_held[timeline] = 0;
    s->entries -= 1;
    s->size -= s->fleet->sizes[timeline];
    heap_remove(&s->ranking, timeline);
    queue_remove(&s->queues, timeline);
    if (s->policy == ORACLE)
        heap_remove(&s->ages, timeline);
    if (s->policy == RULE && !s->rule.is_counted[timeline])
        s->rule.is_asleep[timeline] = 0; /* nothing is left to learn from it */
}

static void evict(Simulation *s, int32_t timeline) {
    s->totals[EVICTED] += s->is_in;
    s->totals[VAIN] += s->is_in_count[timeline];
    s->log[s->log_length++] = timeline;
    drop(s, timeline);
}

/* The best rate of returns per time of keeping an archive of this age, by the true law. */
static double oracle_gain(const Simulation *s, int32_t timeline, double age_s) {
    int32_t draws = s->fleet->draws, first = 0;
    const float *sleeps = s->fleet->sleeps + s->draws_row[timeline] * draws;
    double spent = 0, best = 0;
    while (first < draws && age_s > 0 && sleeps[first] <= age_s)
        first++;
    if (first == draws)
        return 1e-12;
    for (int32_t each = first; each < draws; each++) {
        double left_s = sleeps[each] - age_s;
        spent += left_s;
        double gain = (each - first + 1) / (spent + (draws - 1 - each) * left_s + 1e-9);
        if (gain > best && sleeps[each] < NEVER)
            best = gain;
    }
    return best;
}

static void advance_oracle(Simulation *s, double now_s) {
    for (int32_t item; (item = heap_first(&s->ages)) >= 0 && s->ages.key[item] <= now_s;) {
        double age_s = s->ages.key[item] - s->stopped_s[item];
        double score = oracle_gain(s, item, age_s) / footprint(s, item);
        heap_put(&s->ranking, item, score, s->stopped_s[item]);
        heap_put(&s->ages, item, s->stopped_s[item] + fmax(age_s * 1.2, age_s + 20), 0);
    }
}

static void rank_by_rule(Simulation *s, int32_t timeline) {
    double level = rule_level(&s->rule, timeline, footprint(s, timeline));
    if (!heap_has(&s->ranking, timeline) || level != s->ranking.key[timeline])
        heap_put(&s->ranking, timeline, level, 0);
}

static void advance_rule(Simulation *s, double now_s) {
    Rule *rule = &s->rule;
    if (now_s == rule->now_s)
        return;
    rule_advance_weight(rule, now_s);
    int64_t count = timers_take(&rule->timers, now_s);
    for (int64_t each = 0; each < count; each++) {
        int32_t item = rule->timers.due[each].timeline;
        if (!rule->is_asleep[item] || rule->timers.due[each].sleep != rule->sleep[item])
            continue;
        rule_passed(rule, item, now_s);
        rule_set_timer(rule, item, s->is_held[item]);
        if (s->is_held[item])
            rank_by_rule(s, item);
    }
}

/* Make room by evicting entries of a lower score, as few as possible; 0 if they are not enough. */
static int evict_worse(Simulation *s, int32_t newcomer, double score) {
    double entries_over = s->entries + 1 - s->options->max_entries;
    double size_over = s->size + s->fleet->sizes[newcomer] - s->options->max_size, size = 0;
    int32_t count = 0, kept = 0;
    while (count < entries_over || size < size_over) {
        int32_t item = heap_first(&s->ranking);
        if (item < 0 || s->ranking.key[item] >= score)
            break;
        heap_remove(&s->ranking, item);
        s->chosen[count++] = item;
        size += s->fleet->sizes[item];
    }
    int is_enough = count >= entries_over && size >= size_over;
    for (int32_t each = 0, left = count; is_enough && each < count; each++) {
        int32_t item = s->chosen[each];
        if (left - 1 >= entries_over && size - s->fleet->sizes[item] >= size_over) {
            left--; /* a larger one that came later makes this one superfluous */
            size -= s->fleet->sizes[item];
            heap_restore(&s->ranking, item);
        } else {
            s->chosen[kept++] = item;
        }
    }
    for (int32_t each = 0; each < (is_enough ? kept : count); each++) {
        int32_t item = s->chosen[each];
        if (is_enough)
            evict(s, item);
        else
            heap_restore(&s->ranking, item);
    }
    return is_enough;
}

static int32_t sieve_victim(Queues *q) {
    if (q->hand < 0)
        q->hand = q->tail[0];
    while (q->is_visited[q->hand]) {
        q->is_visited[q->hand] = 0;
        q->hand = q->previous[q->hand] >= 0 ? q->previous[q->hand] : q->tail[0];
    }
    return q->hand;
}

static int32_t s3fifo_victim(Simulation *s) {
    Queues *q = &s->queues;
    for (;;) {
        int is_small = q->length[0] > 0.1 * (q->length[0] + q->length[1]) || q->length[1] == 0;
        int32_t item = q->tail[is_small ? 0 : 1];
        if (q->is_visited[item] && (!is_small || s->gets[item] > 1)) {
            q->is_visited[item] = 0;
            queue_remove(q, item);
            queue_push(q, 1, item);
            continue;
        }
        if (is_small)
            q->left_at[item] = ++q->clock;
        return item;
    }
}

/* Make room for a newcomer; 0 if it is not built. */
static int make_room(Simulation *s, int64_t event, int32_t timeline, double score) {
    if (s->policy == BELADY && s->fleet->returns_s[event] > NEVER)
        return 0;
    if (fits(s, timeline))
        return 1;
    if (s->policy == RULE)
        score = rule_level(&s->rule, timeline, footprint(s, timeline));
    if (s->policy == RULE || s->policy == ORACLE || s->policy == BELADY)
        return evict_worse(s, timeline, score);
    if (s->policy == OLDEST)
        return evict_worse(s, timeline, INFINITY);
    if (s->policy == SKIP || s->fleet->sizes[timeline] > s->options->max_size)
        return 0;
    while (!fits(s, timeline)) {
        int32_t victim = s->policy == SIEVE    ? sieve_victim(&s->queues)
                         : s->policy == S3FIFO ? s3fifo_victim(s)
                                               : heap_first(&s->ranking);
        if (s->policy == GDSF)
            s->inflation = s->ranking.key[victim];
        evict(s, victim);
    }
    return 1;
}

static double first_score(Simulation *s, int64_t event, int32_t timeline, double now_s) {
    switch (s->policy) {
    case GDSF:
        return s->inflation + (s->gets[timeline] + 1) * s->fleet->costs[timeline] / s->fleet->sizes[timeline];
    case BELADY:
        return -s->fleet->returns_s[event];
    case ORACLE:
        s->draws_row[timeline] = s->fleet->draw_rows[event];
        return oracle_gain(s, timeline, 0) / footprint(s, timeline);
    default:
        return now_s;
    }
}

static void insert(Simulation *s, int32_t timeline, double score, double now_s) {
    Queues *q = &s->queues;
    s->is_held[timeline] = 1;
    s->is_in_count[timeline] = (uint8_t)s->is_in;
    s->entries += 1;
    s->size += s->fleet->sizes[timeline];
    if (s->policy == SIEVE) {
        queue_push(q, 0, timeline);
    } else if (s->policy == S3FIFO) {
        int is_ghost = q->left_at[timeline] && q->clock - q->left_at[timeline] < s->options->ghosts;
        q->left_at[timeline] = 0;
        queue_push(q, is_ghost, timeline);
    } else if (s->policy == RULE) {
        if (!s->rule.is_counted[timeline]) /* else it has a timer since its stop */
            rule_set_timer(&s->rule, timeline, 1);
        rank_by_rule(s, timeline);
    } else {
        heap_put(&s->ranking, timeline, score, now_s);
    }
    if (s->policy == ORACLE)
        heap_put(&s->ages, timeline, now_s + 20, 0);
}

static void stop(Simulation *s, int64_t event, int32_t timeline, double now_s) {
    if (s->is_held[timeline])
        drop(s, timeline);
    s->stopped_s[timeline] = now_s;
    if (s->policy == RULE)
        rule_stopped(&s->rule, timeline, now_s);
    double score = first_score(s, event, timeline, now_s);
    if (!make_room(s, event, timeline, score)) {
        s->totals[DECLINED] += s->is_in;
        s->log[s->log_length++] = LOG_DECLINED;
        return;
    }
    insert(s, timeline, score, now_s);
    s->totals[BUILDS] += s->is_in;
    s->log[s->log_length++] = LOG_BUILT;
}

static void start(Simulation *s, int32_t timeline, double now_s) {
    int is_hit = s->is_held[timeline];
    double size = s->fleet->sizes[timeline], cost = s->fleet->costs[timeline];
    if (s->is_in) {
        s->totals[GETS] += 1;
        s->totals[HITS] += is_hit;
        s->totals[SIZE_ASKED] += size;
        s->totals[SIZE_HIT] += is_hit ? size : 0;
        s->totals[COST_ASKED] += cost;
        s->totals[COST_SAVED] += is_hit ? cost : 0;
    }
    if (s->policy == RULE)
        rule_started(&s->rule, timeline, now_s);
    if (is_hit)
        drop(s, timeline);
    s->queues.is_visited[timeline] = (uint8_t)is_hit;
    s->gets[timeline]++;
}

static void delete(Simulation *s, int32_t timeline) {
    if (s->is_held[timeline]) {
        s->totals[VAIN] += s->is_in_count[timeline];
        drop(s, timeline);
    }
}

static void begin(Simulation *s) {
    size_t count = (size_t)s->fleet->count;
    Queues *q = &s->queues;
    heap_init(&s->ranking, s->fleet->count);
    heap_init(&s->ages, s->fleet->count);
    rule_init(&s->rule, s->fleet->count, s->fleet->is_sampled, s->options->all_counted);
    s->is_held = calloc(count, 1);
    s->is_in_count = calloc(count, 1);
    s->stopped_s = calloc(count, sizeof(double));
    s->gets = calloc(count, sizeof(int32_t));
    s->draws_row = calloc(count, sizeof(int64_t));
    s->chosen = malloc(count * sizeof(int32_t));
    q->next = malloc(count * sizeof(int32_t));
    q->previous = malloc(count * sizeof(int32_t));
    q->queue = calloc(count, 1);
    q->is_visited = calloc(count, 1);
    q->left_at = calloc(count, sizeof(int32_t));
    q->head[0] = q->head[1] = q->tail[0] = q->tail[1] = q->hand = -1;
}

static void end(Simulation *s) {
    void *parts[] = {s->is_held, s->is_in_count, s->stopped_s, s->gets, s->draws_row, s->chosen, s->queues.next,
                     s->queues.previous, s->queues.queue, s->queues.is_visited, s->queues.left_at};
    for (size_t each = 0; each < sizeof parts / sizeof *parts; each++)
        free(parts[each]);
    heap_free(&s->ranking);
    heap_free(&s->ages);
    rule_free(&s->rule);
}

/* Run all events. Returns the length of the log, which needs room for two items an event. */
int64_t simulate(const Fleet *fleet, const Options *options, int policy, double *totals, int32_t *log) {
    Simulation simulation = {.fleet = fleet, .options = options, .policy = policy, .totals = totals, .log = log};
    Simulation *s = &simulation;
    begin(s);
    for (int64_t event = 0; event < fleet->events; event++) {
        double now_s = fleet->times_s[event];
        int32_t timeline = fleet->timelines[event];
        s->is_in = now_s >= options->warm_s;
        if (policy == ORACLE)
            advance_oracle(s, now_s);
        if (policy == RULE && fleet->kinds[event] != DELETE)
            advance_rule(s, now_s);
        if (fleet->kinds[event] == STOP)
            stop(s, event, timeline, now_s);
        else if (fleet->kinds[event] == START)
            start(s, timeline, now_s);
        else
            delete(s, timeline);
    }
    end(s);
    return s->log_length;
}
