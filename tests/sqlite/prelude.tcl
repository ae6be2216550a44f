# Runs one file of SQLite's suite: testfixture prelude.tcl <file> <arguments of the file>.
#
# The suite deletes, copies and overwrites databases with Tcl's own commands, which no VFS sees. Who makes a database anew starts its replica
# anew, and so does this script: where such a command takes a database away or puts another in its place, its replica and what replication keeps
# beside it go too. So a database that is there at the end is one whose replica must be complete. With REPLICATED_TEST_KEEP=1 nothing is taken
# away: then replication has to find out by itself, and may stop or send the full state, but never mix two histories.
#
# What the suite writes into a replicated database by other means than SQLite is noted in the file $REPLICATED_TEST_NOTES: in a database that
# is open nobody can notice that, so its end proves nothing.
#
# Without an extension nothing of this does anything, so that both runs take the same way.

namespace eval ::replicated_test {
  variable bucket [expr {[info exists ::env(REPLICATED_TEST_BUCKET)] ? $::env(REPLICATED_TEST_BUCKET) : ""}]
  variable keep [expr {[info exists ::env(REPLICATED_TEST_KEEP)] && $::env(REPLICATED_TEST_KEEP) eq "1"}]
  variable self [::tcl::file::normalize [info script]]

  # Whether there is something beside a file that makes it a replicated database.
  proc is_replicated {path} {
    variable bucket
    expr {$bucket ne "" && [::tcl::file::isdirectory $path-replicated]}
  }

  # A line for the runner.
  proc note {what path} {
    set out [real_open $::env(REPLICATED_TEST_NOTES) a]
    ::puts $out "$what\t[::tcl::file::normalize $path]"
    ::close $out
  }

  proc forget {path} {
    variable bucket
    variable keep
    if {![is_replicated $path]} return
    note replaced $path
    if {!$keep} {
      # A database that is open is still written to: files come while they are deleted.
      for {set try 0} {$try < 100} {incr try} {
        if {![catch {::tcl::file::delete -force $path-replicated $bucket/[::tcl::file::tail $path]}]} break
        after 5
      }
    }
  }

  # The options and the files among the arguments of `file delete`, `file copy` and `file rename`.
  proc options_and_paths {arguments} {
    set options {}
    while {[llength $arguments] && [string match -* [lindex $arguments 0]]} {
      set arguments [lassign $arguments option]
      lappend options $option
      if {$option eq "--"} break
    }
    list $options $arguments
  }

  # Our directories are none of the suite's files: they are neither listed nor copied nor deleted with `test.db*`.
  proc without_ours {paths} {
    lsearch -all -inline -not -glob $paths *-replicated
  }

  proc file_delete {args} {
    lassign [options_and_paths $args] options paths
    set paths [without_ours $paths]
    ::tcl::file::delete {*}$options {*}$paths
    foreach path $paths { forget $path }
  }

  proc file_copy {args} { transfer copy $args }
  proc file_rename {args} { transfer rename $args }

  proc transfer {how arguments} {
    lassign [options_and_paths $arguments] options paths
    if {[without_ours $paths] ne $paths} return
    ::tcl::file::$how {*}$options {*}$paths
    if {$how eq "rename"} { foreach path [lrange $paths 0 end-1] { forget $path } }
    forget [lindex $paths end]
  }

  # One process at a time replicates a database. What the suite starts while this one does, and all that it talks to by a pipe, writes as a
  # process without the extension would.
  proc started {command conversing} {
    if {![info exists ::env(REPLICATED_REPLICA)] || !($conversing || [replicates_any])} { return [uplevel 2 $command] }
    set replica $::env(REPLICATED_REPLICA)
    unset ::env(REPLICATED_REPLICA)
    set code [catch {uplevel 2 $command} result options]
    set ::env(REPLICATED_REPLICA) $replica
    return -options $options $result
  }

  # Whether this process has a control file open.
  proc replicates_any {} {
    foreach descriptor [real_glob -nocomplain /proc/self/fd/*] {
      if {![catch {::tcl::file::readlink $descriptor} target] && [string match *-replicated/control $target]} { return 1 }
    }
    return 0
  }

  # What our commands are put in the place of.
  foreach command {glob exec open hexio_write load_testfixture_extensions sqlite3_test_control_pending_byte test_syscall} { rename ::$command ::replicated_test::real_$command }
  set map [namespace ensemble configure ::file -map]
  foreach command {delete copy rename} { dict set map $command ::replicated_test::file_$command }
  namespace ensemble configure ::file -map $map
  unset map command
}

proc glob {args} {
  set found [uplevel 1 [list ::replicated_test::real_glob {*}$args]]
  ::replicated_test::without_ours $found
}

proc exec {args} {
  ::replicated_test::started [list ::replicated_test::real_exec {*}$args] 0
}

proc open {path args} {
  set command [list ::replicated_test::real_open $path {*}$args]
  if {[string match {|*} $path]} { return [::replicated_test::started $command 1] }
  set channel [uplevel 1 $command]
  if {[regexp {[wa+]|WR} [lindex $args 0]] && [::replicated_test::is_replicated $path]} { ::replicated_test::note written $path }
  return $channel
}

proc hexio_write {path args} {
  if {[::replicated_test::is_replicated $path]} { ::replicated_test::note written $path }
  uplevel 1 [list ::replicated_test::real_hexio_write $path {*}$args]
}

# The suite moves the page that holds SQLite's locks from 1 GiB to 64 KiB. Such a database is none outside of it: in the bucket's format that page
# is where SQLite really has it. So it stays there, but for the files that need it low ($REPLICATED_TEST_LOW_LOCK_PAGE).
proc sqlite3_test_control_pending_byte {offset} {
  if {$offset eq "0x0010000" && ![info exists ::env(REPLICATED_TEST_LOW_LOCK_PAGE)]} return
  ::replicated_test::real_sqlite3_test_control_pending_byte $offset
}

# Some files run only where the VFS is SQLite's own for Unix. Ours is a layer on that one.
proc test_syscall {args} {
  set result [uplevel 1 [list ::replicated_test::real_test_syscall {*}$args]]
  if {[lindex $args 0] eq "defaultvfs" && $result eq "replicated"} { return unix }
  return $result
}

# A test that is run in an interpreter of its own gets the same commands there.
proc load_testfixture_extensions {interpreter args} {
  ::replicated_test::real_load_testfixture_extensions $interpreter {*}$args
  interp eval $interpreter { set replicated_test_inside 1 }
  interp eval $interpreter [list source $::replicated_test::self]
}

if {![info exists replicated_test_inside]} {
  set argv [lassign $argv argv0]
  source $argv0
}
