use super::*;

fn location(text: &str) -> Location {
    ReplicaUrl::parse(text).unwrap().location
}

fn error(text: &str) -> String {
    ReplicaUrl::parse(text).unwrap_err().to_string()
}

fn s3(bucket: &str, path: &str) -> Location {
    Location::S3 { bucket: bucket.into(), path: path.into() }
}

#[test]
fn two_that_lie_in_each_other_are_told() {
    let meet = |a: &str, b: &str, endpoint: Option<&str>| {
        let (a, b) = (ReplicaUrl::parse(a).unwrap(), ReplicaUrl::parse(b).unwrap());
        assert_eq!(a.meets(&b, endpoint), b.meets(&a, endpoint));
        a.meets(&b, endpoint)
    };
    for (a, b) in [
        ("s3://b/app", "s3://b/app"),
        ("s3://b/app", "s3://b/app/?profile=other&region=eu-1"),
        ("s3://b/app", "s3://b/app/second"),
        ("s3://b/", "s3://b/app"),
        ("gs://b/app", "gs://b"),
        ("abs://a@c/app", "abs://a@c/app/x"),
        ("file:///srv/bucket", "file:///srv/bucket/app"),
        ("s3://b/app?endpoint=http://h:1", "s3://b/app?endpoint=http://h:1/"),
    ] {
        assert!(meet(a, b, None), "{a} {b}");
    }
    for (a, b) in [
        ("s3://b/app", "s3://b/app2"),
        ("s3://b/app", "s3://c/app"),
        ("s3://b/app", "gs://b/app"),
        ("s3://b/app", "s3://b/app?endpoint=http://h:1"),
        ("abs://a@c/app", "abs://b@c/app"),
        ("file:///srv/bucket", "file:///srv/bucket2"),
    ] {
        assert!(!meet(a, b, None), "{a} {b}");
    }
    // The option is that of the URL which names none.
    assert!(meet("s3://b/app", "s3://b/app?endpoint=http://h:1", Some("http://h:1")));
}

#[test]
fn paths_are_cleaned_as_litestream_cleans_them() {
    assert_eq!(location("s3://bkt/app/db"), s3("bkt", "app/db"));
    assert_eq!(location("s3://bkt/app/db/"), s3("bkt", "app/db"));
    assert_eq!(location("s3://bkt//app/./x/../db//"), s3("bkt", "app/db"));
    assert_eq!(location("s3://bkt/../a"), s3("bkt", "a"));
    assert_eq!(location("S3://My-Bucket.x/a%20b"), s3("My-Bucket.x", "a b"));
    assert_eq!(location("s3://bkt/"), s3("bkt", ""));
    assert_eq!(location("gs://bkt"), Location::Gcs { bucket: "bkt".into(), path: String::new() });
    assert_eq!(location("gs://bkt/a/"), Location::Gcs { bucket: "bkt".into(), path: "a".into() });
}

#[test]
fn azure_urls_name_the_account_or_leave_it_to_the_environment() {
    let azure =
        |account: Option<&str>| Location::Azure { account: account.map(str::to_owned), container: "box".into(), path: "a/b".into() };
    assert_eq!(location("abs://acct@box/a/b"), azure(Some("acct")));
    assert_eq!(location("abs://box/a/b"), azure(None));
}

#[test]
fn folder_urls_are_absolute_and_not_decoded() {
    assert_eq!(location("file:///backup/app"), Location::Folder { path: "/backup/app".into() });
    assert_eq!(location("file:////backup//a%20b/"), Location::Folder { path: "/backup/a%20b".into() });
    assert!(error("file://backup/app").contains("write file:///"));
    assert!(error("file://").contains("write file:///"));
    assert!(error("file:///").contains("write file:///"));
}

#[test]
fn options_are_read_and_win_only_where_given() {
    let url = ReplicaUrl::parse(
        "s3://b/p?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-central-1&path_style=false&allow_http=1&ca_bundle=/etc/ca.pem&profile=dev",
    )
    .unwrap();
    let expected = UrlOptions {
        endpoint: Some("http://127.0.0.1:9000".into()),
        region: Some("eu-central-1".into()),
        path_style: Some(false),
        allow_http: Some(true),
        ca_bundle: Some("/etc/ca.pem".into()),
        profile: Some("dev".into()),
    };
    assert_eq!(*url.options(), expected);
    assert_eq!(*ReplicaUrl::parse("s3://b/p").unwrap().options(), UrlOptions::default());
    assert_eq!(ReplicaUrl::parse("s3://b/p?endpoint=minio.example").unwrap().options.endpoint.unwrap(), "https://minio.example");
    assert_eq!(ReplicaUrl::parse("s3://b/p?forcePathStyle=YES").unwrap().options.path_style, Some(true));
}

#[test]
fn mistakes_are_named_with_what_is_allowed() {
    assert!(error("bucket/path").contains("\"bucket/path\" has no scheme"));
    assert!(error("/var/lib/app.db").contains("file:///path"));
    assert!(error("ftp://host/x").contains("\"ftp\" is not supported: use s3, gs, abs or file"));
    assert!(error("s3:///path").contains("names no bucket: write s3://bucket/path"));
    assert!(error("abs://acct@/path").contains("names no container"));
    assert!(error("s3://bkt").contains("add a path (s3://bkt/db)"));
    assert!(error("s3://bkt:9000/db").contains("?endpoint="));
    assert!(error("s3://b kt/db").contains("\"b kt\" is not valid"));
    assert!(error("s3://bkt/a%2").contains("'%'"));
    assert!(error("s3://bkt/a%ff").contains("'%'"));
    assert!(error("s3://bkt/a%00b").contains("control character"));
    assert!(error("s3://bkt/db#x").contains("'#'"));
    assert!(error("s3://bkt/db?regoin=x").contains("\"regoin\" is not known for s3://: allowed are endpoint, region"));
    assert!(error("gs://bkt/db?region=x").contains("allowed are endpoint"));
    assert!(error("file:///a?region=x").contains("allowed are none"));
    assert!(error("s3://bkt/db?region=a&region=b").contains("given twice"));
    assert!(error("s3://bkt/db?path_style=maybe").contains("path_style=\"maybe\" is not valid: write true or false"));
    assert!(error("s3://bkt/db?endpoint=ftp://x").contains("write http://host:port"));
    assert!(error("s3://bkt/db?endpoint=").contains("endpoint"));
    assert!(error("s3://bkt/db?region=").contains("eu-central-1"));
}

#[test]
fn credentials_are_refused_and_never_repeated() {
    for text in [
        "s3://AKIAHUSH:s3cr3t@bkt/db",
        "s3://bkt/db?access_key_id=s3cr3t",
        "s3://bkt/db?secretAccessKey=s3cr3t",
        "s3://bkt/db?session_token=s3cr3t",
        "s3://bkt/db?X-Amz-Signature=s3cr3t",
        "s3://bkt/db?endpoint=https://user:s3cr3t@host",
        "s3://AKIAHUSH:s3cr3t/9@bkt/db",
        "gs://s3cr3t@bkt/db",
        "gs://name:s3cr3t/9@bkt/db",
        "abs://acct:s3cr3t@box/db",
        "abs://acct:s3cr3t/9@box/db",
        "abs://acct@box/db?sig=s3cr3t",
        "abs://acct@box/db?account_key=s3cr3t",
    ] {
        let error = ReplicaUrl::parse(text).unwrap_err();
        assert!(matches!(error, UrlError::Credentials { .. }), "{text}: {error}");
        for said in [error.to_string(), format!("{error:?}")] {
            assert!(!said.contains("s3cr3t") && !said.contains("AKIAHUSH"), "{said}");
        }
        assert!(error.to_string().contains("environment"), "{error}");
    }
    assert!(!error("user:s3cr3t@host").contains("s3cr3t"));
    assert!(!error("file://name:s3cr3t@host/db").contains("s3cr3t"));
}
