use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn resolve(uri: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Options, ConfigError> {
    Options::resolve(&pairs(uri), &pairs(env))
}

fn message(uri: &[(&str, &str)], env: &[(&str, &str)]) -> String {
    let message = resolve(uri, env).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn nothing_given_is_all_defaults_and_the_table_says_the_same() {
    assert_eq!(resolve(&[], &[]), Ok(Options::default()));
    for spec in OPTIONS.iter().filter(|spec| !spec.default.is_empty()) {
        assert_eq!(resolve(&[(spec.name, spec.default)], &[]), Ok(Options::default()), "{}", spec.name);
    }
}

#[test]
fn every_option_of_the_table_can_be_set_both_ways() {
    for spec in OPTIONS {
        let text = match spec.kind {
            Kind::Replica => "s3://bucket/path",
            Kind::Duration { max, .. } if max > Duration::from_secs(24 * 3600) => "2m",
            Kind::Duration { .. } => "200ms",
            Kind::Count { .. } => "7",
            Kind::Bytes { .. } => "100MB",
            Kind::Log => "/var/log/replicated.log",
            Kind::LogLevel => "debug",
            Kind::Switch => "true",
            Kind::Address => "127.0.0.1:9464",
            Kind::Text => "text",
            Kind::Txid => "1c",
            Kind::Durability => "bounded",
            Kind::WaitFor => "any",
            Kind::OneOf(words) => words.last().unwrap(),
            Kind::Spans => "1s,2s,3s",
        };
        // Not by itself.
        let first = if spec.name == "replica2" { Some(("REPLICATED_REPLICA", "s3://bucket/first")) } else { None };
        let by_uri = resolve(&[(spec.name, text)], &Vec::from_iter(first)).unwrap();
        let by_env = resolve(&[], &first.into_iter().chain([(spec.env_name().as_str(), text)]).collect::<Vec<_>>()).unwrap();
        assert_ne!(by_uri, resolve(&[], &Vec::from_iter(first)).unwrap(), "{}", spec.name);
        assert_eq!(by_uri, by_env, "{}", spec.name);
    }
}

#[test]
fn what_contradicts_each_other_is_refused_by_the_name_it_was_given_by() {
    assert!(resolve(&[("exact", "24h")], &[]).is_ok());
    assert!(
        message(&[("exact", "25h")], &[]).starts_with("parameter exact: got \"25h\", that is longer than history, which is 24h; allowed")
    );
    let by_env = message(&[("history", "1h")], &[("REPLICATED_EXACT", "2h")]);
    assert!(by_env.starts_with("environment variable REPLICATED_EXACT: got \"2h\", that is longer than history, which is 1h"), "{by_env}");
    assert!(resolve(&[("history", "1h"), ("exact", "1h")], &[]).is_ok());
    for wrong in ["1s,2s", "0s,1s,2s", "2s,1s,3s", "1s,2s,3s,4s", "1,2,3"] {
        assert!(resolve(&[("spans", wrong)], &[]).is_err(), "{wrong}");
    }
    assert!(message(&[("maintenance", "yes")], &[]).contains("allowed is on or off"));
}

#[test]
fn uri_wins_over_environment() {
    let env = [("REPLICATED_BURST", "9"), ("REPLICATED_REGION", "eu-west-1"), ("HOME", "/root")];
    let options = resolve(&[("burst", "2")], &env).unwrap();
    assert_eq!((options.burst, options.region.as_deref()), (2, Some("eu-west-1")));
    // Even where the environment's value would be refused.
    assert!(resolve(&[("burst", "2")], &[("REPLICATED_BURST", "x")]).is_ok());
}

#[test]
fn sqlites_own_parameters_those_of_drivers_and_foreign_variables_pass() {
    let drivers = ["_journal_mode", "_txlock", "_pragma", "_pragma"];
    let uri: Vec<_> = table::SQLITE_PARAMETERS.iter().chain(&drivers).map(|name| (*name, "x")).collect();
    assert!(OPTIONS.iter().all(|spec| !spec.name.starts_with(table::DRIVERS_PREFIX)));
    let env = [("REPLICATED_DEFAULT", "1"), ("REPLICATED_CONFIG", "/etc/x"), ("REPLICATED_TEST_ENV", "x"), ("PATH", "/bin")];
    assert_eq!(resolve(&uri, &env), Ok(Options::default()));
}

#[test]
fn an_empty_replica_switches_off_and_an_empty_variable_counts_as_unset() {
    assert_eq!(resolve(&[("replica", "")], &[("REPLICATED_REPLICA", "s3://b/p")]).unwrap().replica, None);
    assert_eq!(resolve(&[], &[("REPLICATED_REPLICA", ""), ("REPLICATED_BURST", "")]), Ok(Options::default()));
    assert!(resolve(&[("region", "")], &[]).is_err());
}

#[test]
fn unknown_names_are_refused_with_a_suggestion_and_without_their_value() {
    assert_eq!(message(&[("sync_intervall", "1s")], &[]), "unknown parameter sync_intervall: did you mean sync_interval?");
    assert_eq!(message(&[("Replica", "x")], &[]), "unknown parameter Replica: did you mean replica?");
    assert_eq!(
        message(&[], &[("REPLICATED_LOGLEVEL", "info")]),
        "unknown environment variable REPLICATED_LOGLEVEL: did you mean REPLICATED_LOG_LEVEL?"
    );
    let far_off = message(&[("secret_access_key", "hunter2")], &[]);
    assert!(
        far_off.starts_with(
            "unknown parameter secret_access_key; allowed are replica, replica2, restore, restore_from, restore_wait, restore_threads, on_conflict, lease, lease_wait, sync_interval"
        ),
        "{far_off}"
    );
    assert!(!far_off.contains("hunter2"));
}

#[test]
fn a_parameter_given_twice_is_refused() {
    assert_eq!(message(&[("burst", "1"), ("burst", "1")], &[]), "parameter burst is given twice; give it once");
}

#[test]
fn values_out_of_range_say_what_they_got_and_what_is_allowed() {
    assert_eq!(
        message(&[("sync_interval", "5")], &[]),
        "parameter sync_interval: got \"5\", the unit is missing: 5ms, 5s, 5m, 5h or 5d; allowed is a duration from 10ms to 1h, such as 500ms, 1s, 5m"
    );
    assert_eq!(
        message(&[], &[("REPLICATED_BURST", "101")]),
        "environment variable REPLICATED_BURST: got \"101\", that is too large; allowed is a number from 1 to 100"
    );
    for (name, text) in [
        ("sync_interval", "9ms"),
        ("sync_interval", "61m"),
        ("close_timeout", "11m"),
        ("restore_wait", "9ms"),
        ("restore_wait", "25h"),
        ("restore_threads", "0"),
        ("restore_threads", "65"),
        ("restore", "always"),
        ("restore", "true"),
        ("on_conflict", "read-only"),
        ("lease", "199ms"),
        ("lease", "61m"),
        ("lease", "30"),
        ("verify_every", "59s"),
        ("verify_every", "24"),
        ("verify_every", "87601h"),
        ("lease_wait", "61m"),
        ("durability", "full"),
        ("durability", "Remote"),
        ("max_lag", "0s"),
        ("max_lag", "25h"),
        ("ack_timeout", "5ms"),
        ("ack_timeout", "61m"),
        ("burst", "0"),
        ("max_memory", "7MiB"),
        ("max_local", "1"),
        ("log", "log.txt"),
        ("log_level", "loud"),
        ("metrics", "9464"),
        ("metrics", "localhost:9464"),
        ("path_style", "maybe"),
        ("adopt", "0"),
        ("adopt", "xyz"),
    ] {
        let message = message(&[(name, text)], &[]);
        assert!(message.contains(name) && message.contains(text) && message.contains("allowed is"), "{message}");
    }
    assert!(message(&[("log_level", "a\nb")], &[]).contains("a\\nb"));
}

#[test]
fn the_bounds_of_each_range_are_allowed() {
    for (name, text) in [
        ("sync_interval", "10ms"),
        ("sync_interval", "1h"),
        ("lease", "0s"),
        ("lease", "200ms"),
        ("lease", "1h"),
        ("verify_every", "0s"),
        ("verify_every", "1m"),
        ("verify_every", "87600h"),
        ("lease_wait", "0s"),
        ("close_timeout", "0s"),
        ("close_timeout", "10m"),
        ("restore_wait", "10ms"),
        ("restore_wait", "24h"),
        ("restore_threads", "1"),
        ("restore_threads", "64"),
        ("max_lag", "10ms"),
        ("max_lag", "24h"),
        ("ack_timeout", "10ms"),
        ("ack_timeout", "1h"),
        ("burst", "1"),
        ("burst", "100"),
        ("max_memory", "16MiB"),
        ("max_local", "1MiB"),
    ] {
        assert!(resolve(&[(name, text)], &[]).is_ok(), "{name}={text}");
    }
}

#[test]
fn the_name_of_the_database_stands_in_for_the_placeholder() {
    let options = resolve(&[], &[("REPLICATED_REPLICA", "s3://bucket/{name}/x")]).unwrap();
    assert_eq!(options.replica_for(Path::new("/srv/acme/app.db")).as_deref(), Some("s3://bucket/app.db/x"));
    assert_eq!(options.replica_for(Path::new("/srv/my app?.db")).as_deref(), Some("s3://bucket/my%20app%3F.db/x"));
    assert_eq!(Options::default().replica_for(Path::new("/srv/acme/app.db")), None);
    assert!(message(&[], &[("REPLICATED_REPLICA", "s3://b/{nmae}")]).contains("unknown placeholder"));
    assert!(message(&[], &[("REPLICATED_REPLICA", "s3://b/{name")]).contains("brace"));
    assert!(message(&[], &[("REPLICATED_REPLICA", "s3://b/name}")]).contains("brace"));
}

#[test]
fn the_second_replica_is_an_option_of_one_that_has_a_first() {
    let both = resolve(&[("replica2", "s3://b2/{name}")], &[("REPLICATED_REPLICA", "s3://b/{name}"), ("REPLICATED_ADOPT2", "1c")]).unwrap();
    let second = both.second().unwrap();
    assert_eq!(second.replica_for(Path::new("/srv/acme/app.db")).as_deref(), Some("s3://b2/app.db"));
    assert_eq!((second.adopt, second.replica2, both.adopt), (Txid::from_hex("1c"), None, None));
    assert_eq!(resolve(&[], &[("REPLICATED_REPLICA", "s3://b/p")]).unwrap().second(), None);
    // Switched off: the second one by itself, or both.
    let env = [("REPLICATED_REPLICA", "s3://b/p"), ("REPLICATED_REPLICA2", "s3://b2/p")];
    assert_eq!(resolve(&[("replica2", "")], &env).unwrap().second(), None);
    assert_eq!(resolve(&[("replica", "")], &env), Ok(Options::default()));
    assert!(message(&[("replica2", "s3://b2/p")], &[]).contains("there is no replica beside it"));
    assert!(message(&[], &[("REPLICATED_REPLICA2", "s3://b2/p")]).starts_with("environment variable REPLICATED_REPLICA2"));
}

#[test]
fn secrets_of_a_refused_url_are_not_shown() {
    let message = message(&[("replica", "s3://AKIA:hunter2@b/{x}?sig=hunter3")], &[]);
    assert!(!message.contains("hunter") && !message.contains("AKIA"), "{message}");
}

/// The row of an option in `docs/configuration.md`.
fn documented(spec: &OptionSpec) -> String {
    let default = if spec.default.is_empty() { String::new() } else { format!("`{}`", spec.default) };
    format!("| `{}` | `{}` | {} | {default} | {} |", spec.name, spec.env_name(), spec.kind.allowed(), spec.about)
}

#[test]
fn the_documentation_s_file_is_one() {
    let page = include_str!("../../docs/configuration.md");
    let (_, text) = page.split_once("```toml\n").unwrap();
    let file = ConfigFile::parse(Path::new("/etc/replicated.toml"), text.split_once("```").unwrap().0).unwrap();
    let replica = |database: &str| {
        let path = Path::new(database);
        Options::resolve_for(Some(path), &[], &[], Some(&file)).unwrap().options.replica_for(path)
    };
    assert_eq!(replica("/srv/app.db").unwrap(), "s3://backups/app.db");
    assert_eq!(replica("/srv/tenants/acme/app.db").unwrap(), "s3://backups/acme/app.db");
    assert_eq!(replica("/srv/tenants/test/app.db"), None);
}

#[test]
fn the_documentation_has_every_option_as_it_is() {
    let page = include_str!("../../docs/configuration.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `") && line.contains("| `REPLICATED_")).collect();
    let expected: Vec<String> = OPTIONS.iter().map(documented).collect();
    assert_eq!(rows, expected, "the table of docs/configuration.md should be:\n{}", expected.join("\n"));
    for name in table::SQLITE_PARAMETERS.iter().chain(table::ENV_OTHERS) {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}
