use std::path::Path;

use log::{Level, Record};

use super::{Subject, Unless, line, pieces};
use crate::config::LogFormat;
use crate::replicator::local::Paths;
use crate::types::Txid;

#[test]
fn a_short_message_is_one_line() {
    assert_eq!(pieces("all is well"), ["replicated: all is well"]);
}

#[test]
fn a_long_message_is_told_to_its_end() {
    let long_word = "ä".repeat(300);
    for message in ["word ".repeat(200), long_word.clone(), format!("a {long_word} z"), "two  blanks".to_owned()] {
        let pieces = pieces(&message);
        assert!(pieces.iter().all(|p| p.len() <= 200), "{pieces:?}");
        let told: Vec<&str> = pieces.iter().map(|p| p.strip_prefix("replicated: ").unwrap()).collect();
        let told: String = told.iter().map(|p| p.strip_prefix("... ").unwrap_or(p)).collect::<Vec<_>>().join("");
        assert_eq!(told.replace(' ', ""), message.replace(' ', ""));
    }
}

/// As the macro makes it.
fn line_of(subject: &dyn Subject, txid: Option<Txid>, cause: &str, text: &str, format: LogFormat) -> String {
    let (database, txid) = (subject.name().to_string(), Unless(txid).to_string());
    let fields =
        [("event", "tested"), ("database", database.as_str()), ("replica", subject.replica()), ("txid", txid.as_str()), ("cause", cause)];
    let fields = fields.map(|(key, value)| (log::kv::Key::from(key), log::kv::Value::from(value)));
    let fields: &[_] = &fields;
    let prefix = subject.prefix();
    line::log_line(
        &Record::builder().level(Level::Warn).target("replicated").key_values(&fields).args(format_args!("{prefix}{text}")).build(),
        format,
    )
}

#[test]
fn a_line_is_one_line_whatever_is_in_it() {
    let (database, nasty) = (Path::new("/srv/a\n\"b\\.db"), "got \"x\"\r\nERROR replicated: all is lost\u{1b}[2J\0");
    let text = line_of(&database, None, nasty, nasty, LogFormat::Text);
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    let escaped = "got \"x\"\\r\\nERROR replicated: all is lost\\u{1b}[2J\\u{0}\n";
    assert!(text.ends_with(&format!(": /srv/a\\n\"b\\.db: {escaped}")), "{text}");

    let json = line_of(&database, None, nasty, nasty, LogFormat::Json);
    assert_eq!(json.matches('\n').count(), 1, "{json}");
    let object: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&object["database"], &object["message"], &object["cause"]),
        (&database.to_str().unwrap().into(), &nasty.into(), &nasty.into())
    );
}

#[test]
fn a_json_line_has_what_there_is_in_one_order() {
    let second = Paths::second_of(Path::new("/srv/app.db"));
    let json = line_of(&second, Txid::from_hex("1c"), "no route", "not replicated to replica2: no route", LogFormat::Json);
    let (timestamp, rest) = json.split_at(json.find(",\"level\"").unwrap());
    let timestamp = timestamp.strip_prefix("{\"timestamp\":\"").and_then(|text| text.strip_suffix('"')).unwrap();
    assert!(timestamp.len() == "2026-11-23T12:00:00.000Z".len() && timestamp.ends_with('Z'), "{timestamp}");
    assert_eq!(
        rest,
        format!(
            ",\"level\":\"warn\",\"event\":\"tested\",\"database\":\"/srv/app.db\",\"replica\":\"replica2\",\"txid\":\"000000000000001c\",\
             \"cause\":\"no route\",\"message\":\"not replicated to replica2: no route\",\"pid\":{}}}\n",
            std::process::id()
        )
    );
    let of_process = line_of(&super::PerProcess, None, "", "all is well", LogFormat::Json);
    assert!(of_process.contains("\"event\":\"tested\",\"message\":\"all is well\",\"pid\""), "{of_process}");
}

#[test]
fn what_a_server_answers_may_be_long_and_a_line_is_not() {
    let long = "ä".repeat(1 << 20);
    for format in [LogFormat::Text, LogFormat::Json] {
        let line = line_of(&super::PerProcess, None, &long, &long, format);
        assert!(line.len() < 20_000 && line.ends_with('\n'), "{}", line.len());
    }
}

#[test]
fn a_file_beside_a_database_is_about_that_database() {
    for directory in ["/srv/app.db-replicated", "/srv/app.db-replicated2"] {
        let path = Path::new(directory).join("recent");
        assert_eq!(super::Beside(&path).name().to_string(), "/srv/app.db");
    }
    assert_eq!(super::Beside(Path::new("/srv/elsewhere/recent")).database(), None);
}
