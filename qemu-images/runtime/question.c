/* What a client asks the stream server: one JSON object, of which three members and "stop" matter. */
#define _GNU_SOURCE
#include "vnf.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_NESTING = 32 };

static const char *blank(const char *at) { return at + strspn(at, " \t\r\n"); }

static const char *utf8(char **to, char *end, unsigned long code, const char *at)
{
    int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xC0, 0xE0, 0xF0};
    if (*to + more + 1 > end || !code)
        return NULL;
    *(*to)++ = (char)(first[more] | code >> 6 * more);
    while (more--)
        *(*to)++ = (char)(0x80 | (code >> 6 * more & 0x3F));
    return at;
}

static bool hex4(const char *at, unsigned long *code)
{
    char digits[5] = "";
    strncpy(digits, at, 4);
    char *end;
    *code = strtoul(digits, &end, 16);
    return end == digits + 4 && digits[0] != '+' && digits[0] != '-' && digits[0] != ' ';
}

/* A string whose opening quote is at `at` - 1; behind its end, or NULL. `room` octets with the closing NUL. */
static const char *text(const char *at, char *to, size_t room)
{
    static const char *plain = "\"\\/bfnrt", *meant = "\"\\/\b\f\n\r\t";
    char *end = to + room - 1;
    while (at && *at != '"') {
        unsigned long code, low;
        const char *found;
        if ((unsigned char)*at < 0x20 || to >= end) {
            return NULL;
        } else if (*at != '\\') {
            *to++ = *at++;
        } else if (at[1] && (found = strchr(plain, at[1]))) {
            *to++ = meant[found - plain];
            at += 2;
        } else if (at[1] != 'u' || !hex4(at + 2, &code)) {
            return NULL;
        } else {
            at += 6;
            if (code >> 10 == 0x36 && at[0] == '\\' && at[1] == 'u' && hex4(at + 2, &low) && low >> 10 == 0x37) {
                code = 0x10000 + ((code & 0x3FF) << 10 | (low & 0x3FF));
                at += 6;
            }
            at = utf8(&to, end, code, at);
        }
    }
    *to = 0;
    return at ? at + 1 : NULL;
}

static const char *number(const char *at, double *value)
{
    size_t length = strspn(at, "+-0123456789.eE");
    char copy[64], *end;
    if (!length || length >= sizeof copy || at[0] == '+' || at[0] == '.')
        return NULL;
    memcpy(copy, at, length);
    copy[length] = 0;
    *value = strtod(copy, &end);
    return *end || !isfinite(*value) ? NULL : at + length;
}

struct value {
    char kind; /* the first character: " for a string, 0 for a number, t, f, n, { or [ */
    double number;
    char text[256];
};

static const char *any(const char *at, struct value *value, int nesting);

static const char *members(const char *at, char close, struct value *scratch, int nesting)
{
    at = blank(at);
    if (*at == close)
        return at + 1;
    while (at) {
        if (close == '}') {
            at = *at == '"' ? text(at + 1, scratch->text, sizeof scratch->text) : NULL;
            at = at ? blank(at) : NULL;
            at = at && *at == ':' ? blank(at + 1) : NULL;
        }
        at = at ? any(at, scratch, nesting + 1) : NULL;
        at = at ? blank(at) : NULL;
        if (at && *at == close)
            return at + 1;
        at = at && *at == ',' ? blank(at + 1) : NULL;
    }
    return NULL;
}

static const char *any(const char *at, struct value *value, int nesting)
{
    if (nesting > MOST_NESTING)
        return NULL;
    if (*at == '"') {
        at = text(at + 1, value->text, sizeof value->text);
        value->kind = '"';
        return at;
    }
    if (*at == '{' || *at == '[') {
        char kind = *at;
        at = members(at + 1, kind == '{' ? '}' : ']', value, nesting);
        value->kind = kind;
        return at;
    }
    static const char *words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++)
        if (!strncmp(at, words[i], strlen(words[i]))) {
            value->kind = words[i][0];
            return at + strlen(words[i]);
        }
    value->kind = 0;
    return number(at, &value->number);
}

bool question_parse(const char *data, struct question *asked)
{
    bool named = false, rated = false, sized = false;
    memset(asked, 0, sizeof *asked);
    const char *at = blank(data);
    if (*at++ != '{')
        return false;
    for (at = blank(at); at && *at != '}';) {
        struct value value;
        char key[64];
        at = *at == '"' ? text(at + 1, key, sizeof key) : NULL;
        at = at ? blank(at) : NULL;
        at = at && *at == ':' ? any(blank(at + 1), &value, 0) : NULL;
        at = at ? blank(at) : NULL;
        if (!at || (*at != ',' && *at != '}'))
            return false;
        if (!strcmp(key, "flow") && (named = value.kind == '"'))
            strcpy(asked->flow, value.text);
        else if (!strcmp(key, "rate") && (rated = !value.kind))
            asked->rate = value.number;
        else if (!strcmp(key, "packet_bytes") && (sized = !value.kind))
            asked->packet_bytes = value.number;
        else if (!strcmp(key, "stop"))
            asked->stop = value.kind == 't' || (!value.kind && value.number != 0) ||
                          (value.kind == '"' && value.text[0]);
        if (*at == ',' && *(at = blank(at + 1)) == '}')
            return false;
    }
    return at && !*blank(at + 1) && named && asked->flow[0] && (asked->stop || (rated && sized));
}
