# Builds SQLite's testfixture with the hook, object by object, so that all cores work. Included by `make -f` in the configured source tree;
# HOOK is the hook's source, FAULTS the changes to SQLite's.

include Makefile

# What the chosen tests ask for beside the defaults: sqlite3_snapshot_*(), writes that need no journal, the table dbstat.
FIXTURE_FLAGS = -DSQLITE_EXTRA_INIT=replicated_test_init -DSQLITE_ENABLE_SNAPSHOT -DSQLITE_ENABLE_ATOMIC_WRITE \
  -DSQLITE_ENABLE_BATCH_ATOMIC_WRITE -DSQLITE_ENABLE_DBSTAT_VTAB
FIXTURE_SOURCES = $(filter %.c,$(TESTFIXTURE_SRC)) $(HOOK)
FIXTURE_OBJECTS = $(patsubst %.c,fixture/%.o,$(notdir $(FIXTURE_SOURCES)))
VPATH = $(sort $(dir $(FIXTURE_SOURCES)))

# The objects of sources that faults.sed changes.
FAULTY = sqlite3 test1 test2 test_journal test_malloc test_osinst test_syscall

$(FAULTY:%=fixture/%.c): fixture/%.c: %.c $(FAULTS)
	@mkdir -p fixture
	sed -E -f $(FAULTS) $< >$@

# Making sqlite3.c also makes the headers that all include.
$(FAULTY:%=fixture/%.o): fixture/%.o: fixture/%.c | sqlite3.c
	$(COMPILE)

fixture/%.o: %.c | sqlite3.c
	@mkdir -p fixture
	$(COMPILE)

COMPILE = $(TCC) -w -DSQLITE_NO_SYNC=1 $(TEMP_STORE) $(TESTFIXTURE_FLAGS) $(FIXTURE_FLAGS) -c -o $@ $<

fixture/testfixture: $(FIXTURE_OBJECTS)
	$(CC) -rdynamic -o $@ $^ $(LIBTCL) $(TLIBS) -ldl -lpthread
