# Opens each database once more, lets replication finish, and says how it stands: testfixture settle.tcl <database>...
# A database may be damaged, encrypted or no database at all: then its state tells.

foreach path $argv {
  puts "database\t$path"
  if {[catch {sqlite3 db $path} error]} {
    puts "open\t$error"
    continue
  }
  # A hot journal is played back and a WAL is looked at when something is read.
  foreach {name sql} {
    read {SELECT count(*) FROM sqlite_schema}
    journal_mode {PRAGMA journal_mode}
    sync {PRAGMA replicated_sync='30s'}
    status {PRAGMA replicated_status}
  } {
    set failed [catch {db onecolumn $sql} result]
    puts "$name\t[expr {$failed ? "error" : "ok"}]\t[string map {\n \t} $result]"
  }
  db close
}
