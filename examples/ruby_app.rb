#!/usr/bin/ruby
# Replicates a database from Ruby: a few commits, a wait until the bucket has them, the status.
#
# usage: ruby_app.rb REPLICA_URL [DATABASE]
#
# The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.

require "erb"
require "sqlite3"

# A variable that begins with REPLICATED_ and is no option of ours refuses the open: hence delete.
extension = ENV.delete("REPLICATED_EXTENSION") || File.expand_path("../dist/replicated.so", __dir__)
replica, database = ARGV
abort "usage: ruby_app.rb REPLICA_URL [DATABASE]" unless replica
database ||= "app.db"

# Once a process, by a connection of its own: it registers the VFS for those that follow.
loader = SQLite3::Database.new(":memory:")
loader.enable_load_extension(true)
loader.load_extension(extension)
loader.close

file = database.split("/", -1).map { |part| ERB::Util.url_encode(part) }.join("/")
flags = SQLite3::Constants::Open::READWRITE | SQLite3::Constants::Open::CREATE | SQLite3::Constants::Open::URI
db = SQLite3::Database.new("file:#{file}?vfs=replicated&replica=#{ERB::Util.url_encode(replica)}", flags: flags)
db.execute("PRAGMA journal_mode=wal")
db.execute("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")
["one from Ruby", "two from Ruby"].each { |text| db.execute("INSERT INTO notes(text) VALUES (?)", [text]) }

puts "everything is in the bucket, up to TXID #{db.get_first_value('PRAGMA replicated_sync')}"
puts db.get_first_value("PRAGMA replicated_status")
db.close
